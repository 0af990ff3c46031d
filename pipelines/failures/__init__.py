"""What a failed stage leaves behind: the words on the terminal and the page."""
