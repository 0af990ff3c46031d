"""Our own in-context examples, (source, target) each: `labels` for short names, `captions` for alt texts.

A target says the same as its source in other words and adds no fact; the model follows what it is shown.
"""

Example = tuple[str, str]

LABELS: tuple[Example, ...] = (
    ("red apple", "a picture of a red apple"),
    ("sleeping cat", "an icon of a sleeping cat"),
    ("old wooden chair facing left", "a picture of an old wooden chair facing left"),
    ("two hearts with ribbon", "an icon showing two hearts with a ribbon"),
    ("cloud with heavy rain", "a drawing of a cloud with heavy rain"),
    ("Norway", "a picture of Norway"),
    ("woman gardener dark skin tone", "a picture of a woman gardener with a dark skin tone"),
    ("boy juggling medium-light skin tone", "a drawing of a boy juggling, with a medium-light skin tone"),
    (
        "waving neighbors light skin tone medium skin tone",
        "a picture of waving neighbors with a light skin tone and a medium skin tone",
    ),
    ("man running uphill facing right", "an image of a man running uphill, facing right"),
    ("no bicycles allowed", "a sign showing no bicycles allowed"),
    ("cup without handle", "a drawing of a cup without a handle"),
    ("laughing face with party hat", "an icon of a laughing face with a party hat"),
    ("teacher medium-dark skin tone grey hair", "a teacher with a medium-dark skin tone and grey hair"),
    ("quarter past six", "a picture showing quarter past six"),
    ("blue striped shirt", "an image of a blue striped shirt"),
)

CAPTIONS: tuple[Example, ...] = (
    ("Dog on beach at sunset", "A dog is on the beach at sunset."),
    ("vintage blue bicycle leaning on brick wall", "A vintage blue bicycle is leaning on a brick wall."),
    ("homemade tomato soup in white bowl", "A white bowl of homemade tomato soup."),
    ("Two kids, playing football in the park", "In the park, two kids are playing football."),
    ("snowy mountain behind lake", "Behind the lake is a snowy mountain."),
    ("Black leather office chair with wheels", "An office chair with wheels, in black leather."),
    ("man with umbrella waiting for bus", "A man waiting for the bus with an umbrella."),
    ("fresh bread on wooden table", "On a wooden table there is fresh bread."),
    ("City street at night, neon signs", "Neon signs on a city street at night."),
    ("woman reading newspaper in cafe", "In a cafe, a woman is reading the newspaper."),
    ("yellow flowers in glass vase by window", "A glass vase of yellow flowers by the window."),
    ("Old lighthouse and rocky coast", "A rocky coast with an old lighthouse."),
    ("cat asleep on red sofa", "On the red sofa, a cat is asleep."),
    ("red sports car parked outside hotel", "Outside the hotel, a red sports car is parked."),
    ("hand drawn map of small island", "A map of a small island, drawn by hand."),
    ("Empty classroom with green chalkboard", "A classroom that is empty, with a green chalkboard."),
)

EXAMPLES: dict[str, tuple[Example, ...]] = {"labels": LABELS, "captions": CAPTIONS}
