"""The words and plots of synthetic stories: templates whose slots are people, things and words drawn anew.

A plot is a list of paragraphs, a paragraph a list of moments, a moment a choice of sentences, one of which is told
(an empty one: nothing is). People and things are chosen once for a story and stay what they are: `H`, `F` and `G` are
hero, friend and grown-up (`Gc`: with a capital); `he him his He His` are the hero's pronouns, with `f` or `g` before
them those of the others; `a b c d` come from the plot's row. To add a plot, append to `PLOTS`.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """The choices between `|`."""
    return tuple(phrase.strip() for phrase in text.split("|"))


NAMES = {
    "girl": _words(
        "Ada Amy Anna Bella Clara Daisy Ella Emma Fay Grace Hanna Ida Ivy June Kate Lily Lucy Maya Mia Nora Sara Zoe"
    ),
    "boy": _words(
        "Adam Ben Carl Dan Eli Finn Fred Gus Henry Hugo Ian Jack Leo Max Ned Noah Oscar Paul Sam Theo Tim Tom Will"
    ),
}
GROWN_UPS = {
    "girl": phrases("Mom|Grandma|Aunt May|Aunt Rose|Mrs. Green|Mrs. Bell|the baker|the farmer|the teacher|the nurse"),
    "boy": phrases("Dad|Grandpa|Uncle Joe|Uncle Ray|Mr. Brown|Mr. Wood|the gardener|the fisherman|the miller"),
}
ANIMALS = _words("badger bear bunny cat dog duck fox frog goat hedgehog lamb mouse otter owl pony squirrel turtle")
PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}
COLORS = _words("red blue green yellow orange white black brown pink purple golden silver")
THINGS = _words(
    "ball kite hat scarf book drum boat bell basket button ribbon ring coin doll whistle cup spoon blanket lantern box"
)
PLACES = phrases(
    "the park|the garden|the beach|the forest|the farm|the village|the market|the meadow|the river|the hill|the pond"
    "|the school|the playground|the barn|the old mill|the orchard"
)
DRAWN = {
    "age": _words("little small young kind quiet cheerful brave curious clever shy busy happy lively gentle"),
    "good": phrases("happy|glad|proud|cheerful|thankful|very happy|full of joy|so happy|very proud|pleased"),
    "bad": phrases("sad|upset|worried|unhappy|very sad|sorry|cross|close to tears|lonely"),
    "softly": _words("softly quietly gently kindly slowly warmly calmly"),
    "loudly": _words("loudly happily quickly proudly cheerfully excitedly"),
    "went": _words("ran walked hurried skipped jumped raced wandered climbed"),
    "spot": phrases(
        "under the bed|behind the door|in the tall grass|under a bench|on top of the shelf|behind the big tree"
        "|next to the well|under the stairs|near the gate|in the kitchen|beside the fence|behind the shed"
    ),
    "food": phrases(
        "bread and honey|warm soup|apple pie|cookies|pancakes|berries|cheese and bread|a big cake|sweet plums|hot cocoa"
        "|nuts and raisins|carrot cake|jam on toast"
    ),
    "time": phrases("in the morning|after lunch|in the afternoon|before dinner|that evening|after school|at noon"),
    "day": _words("sunny warm windy cold bright cloudy quiet fine foggy snowy"),
    "thing": phrases("a smooth stone|a long feather|a shell|a pine cone|a blue flower|a snail|a shiny leaf|an acorn"),
    "animal": _words("bird butterfly bee robin rabbit beetle crow dragonfly lizard sparrow"),
    "game": phrases("hide and seek|tag|catch|a singing game|a guessing game|pirates|a counting game"),
    "number": _words("two three four five six seven ten"),
}
"""Slots that are drawn each time they come."""

OPENINGS = phrases(
    "Once upon a time, there was a {age} {kind} named {H}.|There once was a {age} {kind} whose name was {H}."
    "|{H} was a {age} {kind} who lived near {P}.|In a house near {P} lived a {age} {kind} named {H}."
    "|Long ago, a {age} {kind} named {H} lived close to {P}.|One {day} day, a {age} {kind} named {H} woke up early."
)
HABITS = phrases(
    "|{He} liked to play {game} with {his} friend {F}.|{He} had a good friend named {F}."
    "|Every day, {he} played near {P} with {his} friend {F}.|{His} best friend {F} was a {age} {fkind}."
    "|{He} loved {food}, and {he} loved to look for {thing}.|{H} and {his} friend {F} often played {game}."
)
SCENES = phrases(
    "|It was a {day} day.|The sky was blue, and a {animal} sat on the fence.|{Time}, {he} {went} to {P}."
    "|It was {day} outside, and {H} felt {good}.|A {animal} was singing, and the air smelled of {food}."
    "|On the way, {he} counted {number} trees and found {thing}."
)
ENDINGS = phrases(
    "|That night, {H} fell asleep with a smile.|Then they all ate {food} together."
    "|They laughed and played {game} until dark.|{H} went home, {good} and a little tired."
    "|From that day on, {H} and {F} were the best of friends."
    "|{H} told {G} all about it {time}.|And {he} never forgot that day.|{Time}, they all sat together and ate {food}."
)
LINKS = phrases(
    "The next day, something else happened.|A week later, it was {day} again.|But that is not the end of the story."
    "|Soon there was a new day.|When the summer was over, the days were short.|The next week, {H} woke up early."
)
