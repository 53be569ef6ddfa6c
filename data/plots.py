"""The plots of synthetic stories.

A plot is a list of paragraphs (an empty line between them), a paragraph a list of moments (lines), a moment a choice of
sentences (`|`), one of which is told; an empty one tells nothing. `a b c d` are the parts of a row of the plot; the
other slots are explained in `data/grammar.py`. To add a plot, append to `PLOTS`.
"""

from typing import NamedTuple

from data.grammar import phrases


class Plot(NamedTuple):
    """One kind of story."""

    name: str
    rows: tuple[tuple[str, ...], ...]
    """What the slots a, b, c, d may be, together."""
    paragraphs: tuple[tuple[tuple[str, ...], ...], ...]
    morals: tuple[str, ...]


def _plot(name: str, rows: str, paragraphs: str, morals: str) -> Plot:
    """A plot from text: rows and paragraphs between empty lines; a row may go over several lines."""
    moments = tuple(tuple(phrases(line) for line in text.strip().splitlines()) for text in paragraphs.split("\n\n"))
    parts = tuple(phrases(" ".join(row.split())) for row in rows.split("\n\n"))
    return Plot(name, parts, moments, ("", *phrases(morals)))


LOST = """
{H} had {aO}, and {he} took it everywhere.|{H}'s favorite thing was {aO}.|{G} had given {H} {aO}.
But {time}, the {o} was gone!|One day, {he} could not find the {O}.|Then, {time}, {he} saw that the {o} was missing.
{H} felt {bad}.|"Where is my {o}?" cried {H}.|{H} sat down and felt {bad}. "My {o} is gone," {he} said {softly}.

{He} looked {spot}, but the {o} was not there.|{H} looked {spot}. {He} found {thing}, but no {o}.
|Then {he} looked {spot}. No {o}!|{He} asked a {animal}, but it only flew away.|{He} looked {spot} and {spot}, too.
{F} saw {him} and asked, "What is wrong?"|{F} came by. "Why are you {bad}?" {fhe} asked.
"I lost my {O}," said {H}.|"My {o} is gone," {H} told {fhim}.|"I cannot find my {O}," {he} answered.
"Do not worry. I will help you," said {F}.|{F} took {his} hand. "Let us look together," {fhe} said {softly}.

Together they {went} to {P} and looked {spot}.|{F} looked {spot}, and {H} looked {spot}.|They {went} back to {P}.
"Look!" called {F} {loudly}. There was the {O}, {a}.|And there, {a}, lay the {o}! {F} had seen it first.
{b}|{H} held the {o} tight.|{H} was {good}. "Thank you, {F}!" {he} said.
"Next time, I will put my {o} {c}," said {H}.|{H} thanked {fhim} and shared {his} {food} with {fhim}.
"""
AFRAID = """
{H} was afraid of {a}.|There was one thing that {H} did not like: {a}.|But {H} had a secret. {He} was afraid of {a}.
{b}|When the others laughed and played, {H} stayed home because of {a}.
"I cannot do it," {he} said {softly}.|{He} hid {spot} and felt {bad}.|{His} heart beat fast, and {he} shut {his} eyes.

{F} found {him} and sat down beside {him}.|{F} asked {him} what was wrong, and {H} told {fhim} everything.
"I was afraid of {a}, too," said {F}. "{c}"|"Do you know what {G} told me?" asked {F}. "{c}"
{H} thought about that.|{H} was not sure.|"Really?" asked {H}.|{H} looked at {fhim} for a long time.
"Will you stay with me?" {he} asked. "Yes," said {F}.|"I will hold your hand," said {F} {softly}.

{Time}, they tried it together.|So they tried, one small step at a time.|They counted to {number} and tried.
At first, {H} held {F}'s hand very tight.|At first, {he} wanted to run away, but {he} stayed.
|{He} took a deep breath.|Then {he} opened {his} eyes.|A {animal} sat near them and was not afraid at all.
{d}|Then {he} began to laugh. It was not so bad!
"I did it!" {he} said {loudly}.|{H} was {good}. "I am not afraid any more," {he} told {G}.
"""
SHARE = """
{G} gave {H} {a}.|{H} had {a}, and {he} was {good}.|One day, {H} got {a} from {G}.
{F} had nothing.|{F} looked at it and asked, "May I have some, too?"|"Can we share?" asked {F}.
"No! It is all mine," said {H}.|{H} shook {his} head. "It is mine," {he} said.|But {H} did not want to share.
{F} felt {bad} and {went} away.|{F} said nothing and {went} home. {FHe} was {bad}.

{H} sat alone {spot}.|Now {H} was alone with {a}.|{H} {went} to {P}, but it was no fun alone.
{b}|{He} tried to be {good}, but {he} was not.|It was very quiet, and {he} felt {bad}.
"What is the matter?" asked {G}.|{Gc} saw {him} and sat down beside {him}. "Where is {F}?" {ghe} asked.
"I did not share, and {F} went away," said {H}.|{H} told {ghim} what had happened.
"You can still make it right," said {G} {softly}.|"{c}" said {G}.|"What would make you both happy?" asked {G}.

So {H} {went} to find {F}.|{H} {went} to {F} and held out {his} hand.|{H} looked {spot}, and there was {F}.
"I am sorry," {he} said. "Please take half."|"I am sorry, {F}. Let us share," said {H}.
{F} smiled, and {fhis} eyes were bright.|"Thank you," said {F}. {FHe} was {good} again.
{d}|It was much better with a friend.|They sat down together, and both were {good}.
"""
BROKEN = """
{Time}, {H} played {game} in the house.|{H} ran around the table, although {G} had told {him} not to run.
{He} bumped into the shelf, and {a} fell down.|Then {his} foot hit the table. Down fell {a}!
Crash! It was broken.|It broke into {number} pieces.|{b}
{H} felt {bad}. {He} looked around, but nobody had seen it.|"Oh no," said {H}. "What will {G} say?"

{He} hid the pieces {spot}.|{He} put the pieces in a box and hid the box {spot}.
But {he} could not play any more.|All day, {he} thought about {a}.|At dinner, {he} could not eat the {food}.
{F} asked, "Why are you so quiet?"|"You look {bad}," said {F}. "Tell me."
{H} told {fhim} the secret.|"I broke {a}," said {H} {softly}.|
"You should tell the truth," said {F}.|"{c}" said {F}.|"Tell {G}. I will come with you," said {F}.

So {H} {went} to {G}.|{H} took the pieces and {went} to {G}.
"I broke {a}," {he} said. "I am sorry."|"It was me," said {H}. "I am very sorry."
{Gc} was quiet for a moment.|{Gc} looked at the pieces.|{Gc} put down {ghis} book.
"Thank you for telling me the truth," {ghe} said.|"I am glad that you told me," said {G} {softly}.
{d}|Together they mended it with glue.|Then {ghe} got the glue, and they mended it together.
"""
LEARN = """
{H} wanted to learn to {a}.|More than anything, {H} wanted to {a}.|{F} could {a}, but {H} could not.
{b}|{G} showed {him} how.|"It takes time," said {G}.|"Watch me," said {F}.
{H} tried, but it did not work.|The first time, it went wrong.|{He} tried {number} times. It went wrong.
"I will never learn it!" {he} cried.|{He} felt {bad} and wanted to stop.|{H} sat down {spot} and felt {bad}.

"{c}" said {G}.|"I needed {number} weeks to learn it," said {F}.|"Try again," said {F} {softly}. "I will help you."
So {he} tried again.|{H} dried {his} eyes and tried again.|The next day, {he} tried again.
|Every day, {he} tried a little longer.|Each day it went a little better.|{F} came every day to help {him}.
|One day it rained, but {he} did not stop.|{Gc} brought {food}, and {he} tried again.|Even a {animal} seemed to watch.

Then, {time}, {he} did it!|And one {day} day, it worked.|After {number} days, something was different.
{H} {d}!|Look at that! {H} {d}.
"I can do it!" {he} called {loudly}.|{F} clapped {fhis} hands.|"Look, {G}! Look at me!" {he} called.
{Gc} was {good}.|"I knew that you could," said {G}.|{H} was {good}, and {F} was {good}, too.
"""
RESCUE = """
{Time}, {H} and {F} {went} to {P}.|{H} walked through {P} with {F}.|One {day} day, {H} was playing {game} with {F}.
Suddenly, they heard a small sound.|"Did you hear that?" asked {F}.|"Listen!" said {H}. Somebody was crying.
There was {a}, and it was stuck {b}.|They looked around and found {a} {b}. It could not get out.
"Help me, please," it said.|It looked up with big eyes.|It was cold and afraid.

{H} tried to reach it, but {his} arms were too short.|{F} pulled, but {fhe} was not strong enough.
|They pulled and pulled.|"Do not be afraid," said {H} {softly}.|"We will not leave you," {F} told it.
"We need {c}," said {H}.|Then {H} had an idea. "Let us get {c}!" {he} said.|"{Gc} has {c}," said {F}.
{F} {went} to {G} and came back with {c}.|{H} {went} home as fast as {he} could and brought {c}.
"Careful now," said {G}, who had come with them.|"One, two, three!" called {F}.|They worked together, slowly and gently.

{d}|At last, it was free.|And then it was free!
"Thank you," it said. "You are very kind."|It jumped around them and was {good}.|It looked back once and {went} home.
{H} and {F} were {good}.|"We did it together," said {H}.|{Gc} smiled. "Well done," {ghe} said.
|The next day, it came back and brought them {thing}.|They gave it {food}, and it ate everything.
"""
GIFT = """
It was almost {G}'s birthday.|{H} knew that the next day was {G}'s birthday.|"Tomorrow is a birthday," said {H}.
{H} wanted to give {ghim} {a}.|"I want to make {a}," {he} told {F}.|{He} had no money, but {he} could make {a}.
"I can help," said {F}.|{F} wanted to help, too.|{H} asked {F} to help {him}.
They worked {time} and used {b}.|They took {b} and began.|All they needed was {b}.

But then {c}.|When they were almost done, {c}.|They were very careful, but {c}.
{H} felt {bad}.|"Now it is ruined!" cried {H}.|{H} wanted to throw it away.|{F} felt {bad}. "I am sorry," {fhe} said.
|They sat {spot} and said nothing.|A {animal} looked in through the window.|They thought and thought.
"Wait," said {F}. "{d}"|Then {F} had an idea. "{d}" {fhe} said.

They worked until dark.|So they began again.|{H} laughed, and they worked {number} more hours.
The next day, {H} gave {a} to {G}.|"Happy birthday, {G}!" called {H} and {F} {loudly}.
{Gc} was {good}.|"Did you make this?" asked {G}.|"It is the best gift of all," said {G}.
"We made it together," said {H}.|{Gc} put {ghis} arms around {H} and {F}.|Then {ghe} cut the birthday cake.
"""
RACE = """
There was a {a} in {P}.|{P_} had a {a} every year.|"There will be a {a} tomorrow!" said {F}.
"I am the best at this," said {H}.|{H} was sure that {he} would win.|{H} told everybody that nobody could beat {him}.
{F} said nothing, but {fhe} {b} every day.|{F} was not fast, but {fhe} {b} every morning.
"You will never win," {H} told {F}.|{H} laughed at {fhim} and went to sleep {spot}.|{H} ate {food} and did nothing.

Then the day came, and it was {day}.|On the day of the {a}, everybody came to {P}.
{H} was ahead at first.|At the start, {H} was far ahead of {F}.|{H} began very well.
But then {he} {c}.|Then {he} looked back, and {he} {c}.|{He} waved to {G}, and {he} {c}.
|{H} cried out.|Everybody stopped to look.|A {animal} flew up.|{Gc} put {ghis} hand to {ghis} mouth.
{F} saw it. {FHe} could win now!|{F} was close behind {him}. Now {fhe} could win.

But {F} stopped and {d}.|{F} did not go on. {FHe} {d}.
"Why did you stop?" asked {H}.|"You could have won!" said {H}.|{H} could not believe it.
"You are my friend," said {F}.|"A friend is more than a prize," said {F}.
{H} was ashamed of {his} words. "I am sorry," {he} said.|"I was not nice to you," said {H}. "I am sorry."
They came in last, hand in hand, and everybody clapped.|They finished together, and {G} gave both of them {food}.
"""
LOST_ROWS = """
under a leaf | {H} jumped up and down. | on the shelf

in a nest | {H} could not believe it. | in a box

behind a stone | {H} laughed. | in my bag

between two roots | {H} gave {F} a big hug. | beside my bed
"""
AFRAID_ROWS = """
the dark | At night, {he} saw shapes on the wall. | The dark is only the day with its eyes shut. | The shapes were
only a chair and a coat.

deep water | {He} never went into the pond. | You can begin where it is low. | The water was cool, and it carried
{him}.

thunder | When the clouds were black, {he} hid. | Count the time between the light and the sound. | The thunder was
far away now, and the rain sang on the roof.

big dogs | There was a big dog near the gate. | Let it smell your hand first. | The dog licked {his} hand and wagged
its tail.

high places | {He} never climbed the old tree. | Look up and not down. | From the top {he} could see the whole
village.
"""
SHARE_ROWS = """
a bag of nuts | The nuts did not taste good. | A thing gets better when you share it, | They ate the nuts one by one.

a new swing | The swing did not swing well alone. | Somebody has to push, | {H} pushed {F}, and then {F} pushed {H}.

a box of paints | {He} painted a gray cloud. | Two see more colors than one, | They painted a house with a big sun.

a basket of plums | {He} ate and ate until {his} belly hurt. | There is enough for two, | There were still {number}
plums for each of them.
"""
BROKEN_ROWS = """
the blue vase | There was water everywhere. | A secret gets heavy when you carry it alone, | It had a crack, but
flowers stood in it again.

the old clock | It did not tick any more. | Telling is hard, but hiding is harder, | Soon the clock went tick and tock
again.

the big mirror | Pieces lay all over the floor. | The truth is always better, | They swept the floor, and {G} hung up
a picture.

the tea pot | The tea ran over the floor. | Everybody breaks something once, | They made tea in the kettle and laughed
about it.
"""
LEARN_ROWS = """
ride a bike | The bike was old and a bit too big. | You fall, and you get up, | rode all the way to {P}

swim | The others swam like fish. | First you float, and then you swim, | swam from one side to the other

whistle | Only air came out. | Make your lips round and blow softly, | whistled a whole song

bake bread | The first bread was as hard as a stone. | Good things need time, | baked a bread that was soft and brown

read | The letters danced before {his} eyes. | One letter, then one word, | read a whole page aloud

skate | The ice was smooth and hard. | Bend your knees, | skated around the pond without falling
"""
RESCUE_ROWS = """
a small lamb | in the mud | a rope | The rope went around its belly, and they pulled.

a kitten | up in a tree | a ladder | {F} held the ladder, and {H} climbed up.

a duckling | in an old pipe | a long spoon | They pushed from behind until it came out.

a hedgehog | in a deep hole | a wide board | It walked up the board, step by step.

a young bird | in a net | scissors | Snip, snip, they cut the net.
"""
GIFT_ROWS = """
a picture | paper and paints | the paint fell over | We can make the spot into a big tree.

a cake | flour, eggs and sugar | the top of the cake burned | We can cut off the top and put berries on it.

a warm scarf | soft wool | the wool ran out | We can make the end in another color.

a clay bowl | wet clay | the bowl got a hole | We can make it a pot for flowers.

a song | a drum and a bell | they forgot the words | We can hum that part.
"""
RACE_ROWS = """
race | ran to the hill and back | fell into a ditch | pulled {him} out

boat race | rowed on the pond | lost an oar | gave {him} one of {fhis}

sled race | pulled a sled up the hill | landed in the deep snow | dug {him} out

kite contest | flew a kite | got caught in the branches of a tree | freed the strings
"""
PLOTS = (
    _plot(
        "lost",
        LOST_ROWS,
        LOST,
        "A good friend helps you look.|Two find more than one.|It is good to take care of your things.",
    ),
    _plot(
        "afraid",
        AFRAID_ROWS,
        AFRAID,
        "Being brave means trying when you are afraid.|Fear grows small when you share it.|Friends make us brave.",
    ),
    _plot(
        "share",
        SHARE_ROWS,
        SHARE,
        "Sharing makes two people happy.|What you share, you do not lose.|A friend is better than a full basket.",
    ),
    _plot(
        "broken",
        BROKEN_ROWS,
        BROKEN,
        "It is always better to tell the truth.|A mistake can be mended.|The truth makes the heart light.",
    ),
    _plot(
        "learn",
        LEARN_ROWS,
        LEARN,
        "If you try again and again, you will learn.|Nobody is good at the start.|Little steps go a long way.",
    ),
    _plot(
        "rescue",
        RESCUE_ROWS,
        RESCUE,
        "Even small hands can help.|Who helps others is never alone.|Kindness comes back.",
    ),
    _plot(
        "gift",
        GIFT_ROWS,
        GIFT,
        "The best gifts are made with love.|A mistake can become something new.|It is the thought that counts.",
    ),
    _plot(
        "race",
        RACE_ROWS,
        RACE,
        "Being kind is better than winning.|Pride comes before a fall.|A true friend stops to help.",
    ),
)
