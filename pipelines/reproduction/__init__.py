"""`clipworks reproduce`: a method's experiment as one recipe, its numbers over seeds, and the card that is kept."""
