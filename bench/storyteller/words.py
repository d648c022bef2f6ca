"""The words of the small world: its people, places and things, and the sentences in which nothing is told that has to be remembered."""

WOMEN = "Anna Clara Elena Greta Irina Katja Lena Nina Rosa Sofia Tilda Vera".split()
MEN = "Boris David Felix Hugo Jonas Mikhail Oskar Paul Stefan Tomas Viktor Willem".split()
TOWNS = "Arden Belmont Carden Dorfen Elmar Falken Hagen Linden Marlow Norden Rovan Selby".split()
THINGS = (
    "amulet arrow basket bell book bottle box bracelet candle chain coin compass crown cup dagger drum feather flute glove hammer harp "
    "key knife lamp lantern letter locket map mask medal mirror necklace needle pearl pipe purse ribbon ring rope sack scarf shell "
    "shield spoon sword watch whistle wreath"
).split()  # fmt: skip
# where a thing may lie, and the word before it that is usual
PLACES = {
    "bridge": "under", "well": "in", "mill": "behind", "river": "by", "hill": "on", "cellar": "in", "harbour": "at", "oak": "under",
    "church": "behind", "barn": "in", "roof": "on", "cave": "in", "lake": "by", "tower": "in", "stairs": "under", "school": "behind",
    "garden": "in", "inn": "at", "boat": "in", "bed": "under", "forest": "in", "island": "on", "stove": "behind", "chapel": "in",
    "stable": "behind", "wall": "by", "table": "under", "chest": "in", "fountain": "by", "attic": "in",
}  # fmt: skip
BEFORE = ("in", "under", "behind", "by", "on", "at")
ANIMALS = "cat cow dog donkey goat goose hen horse lamb owl pig pony raven sheep".split()
LOCKED = "gate tower cellar cave door castle garden bridge chest library vault island tunnel palace".split()
# what somebody does by trade
TRADES = {
    "baker": ("baked bread for the whole village", "swept the flour from the floor", "took warm rolls out of the oven"),
    "miller": ("listened to the great wheel", "carried sacks of grain up the steps", "ground corn until dark"),
    "smith": ("made a horseshoe", "blew on the fire", "hammered the red iron"),
    "tailor": ("sewed a coat of blue cloth", "threaded the needle by the window", "cut the cloth for a wedding dress"),
    "weaver": ("wove a carpet with birds on it", "sat at the loom all day", "dyed the wool red"),
    "fisher": ("mended the nets", "rowed out before sunrise", "came home with two big fish"),
    "shepherd": ("led the sheep over the hill", "counted the lambs", "slept beside the flock"),
    "gardener": ("planted beans and roses", "watered the young trees", "raked the yellow leaves"),
    "doctor": ("looked after a child with a fever", "cooked a bitter medicine", "bound up a broken arm"),
    "teacher": ("wrote a long sum on the board", "taught the children a song", "rang for the lesson"),
    "painter": ("mixed green and gold", "painted the old church", "drew a fox on the wall"),
    "carpenter": ("built a chair with three legs", "planed a board of beech", "repaired the broken roof"),
    "hunter": ("followed tracks in the snow", "waited quietly among the trees", "came home without a deer"),
    "sailor": ("sang of distant seas", "tied a knot that nobody could open", "looked at the stars"),
    "singer": ("sang an old ballad", "practised high notes on the hill", "made the whole inn weep"),
    "potter": ("turned a jug on the wheel", "burned the bowls in the kiln", "carried clay from the river bank"),
}  # fmt: skip
# S is who the paragraph is about, by name or as he or she; HE, HIS, HIM belong to it; ANOTHER is somebody else
DEEDS = (
    "S walked along the river and sang", "S sat by the fire and listened", "S ate soup with black bread", "S slept until noon",
    "S fed the hungry birds", "S laughed at a joke that ANOTHER told", "S played cards with ANOTHER", "S went home through the snow",
    "S looked out of the window", "S cleaned HIS boots", "S cut wood behind the house", "S told ANOTHER a long story",
    "S danced with ANOTHER until midnight", "S drank a cup of tea with honey", "S counted HIS money", "S wrote a few lines to HIS sister",
    "S climbed over the fence", "S waited for ANOTHER at the crossroads", "S bought apples at the market", "S lit a small lamp",
    "S opened the door and called for ANOTHER", "S closed HIS eyes and thought of the sea", "S lost HIS way in the fog",
    "S helped ANOTHER carry water", "S carried a heavy load up the hill", "S whistled a merry tune", "S caught a cold in the rain",
    "S rode to the next village", "S argued with ANOTHER about the weather", "S forgave ANOTHER", "S could not sleep that night",
    "S put on HIS warm coat", "S found mushrooms among the ferns", "S swam across the cold lake", "S kissed HIS mother goodbye",
    "S hurried home before the storm", "S shared HIS supper with ANOTHER", "S stood still and held HIS breath",
    "S visited HIS grandmother", "S washed HIS hands in the stream", "S wondered what the morning would bring",
    "S asked ANOTHER for advice, but ANOTHER only smiled", "S had never been so happy", "S was tired, but HE did not complain",
    "S was glad that the long winter was over", "S did not say a word", "S believed every word of it", "S had a strange dream",
)  # fmt: skip
SPEECH = (
    "“It will snow tomorrow,” said S.", "“Come in and warm yourself,” said ANOTHER.", "“I have never seen such a moon,” said S.",
    "“Who is there?” asked S, but nobody answered.", "“You are late again,” said ANOTHER.", "“Do not be afraid,” said S to ANOTHER.",
    "“Let us go before it gets dark,” said ANOTHER.", "“What a beautiful day!” cried S.", "“Listen to the wind,” whispered S.",
    "“I will be back by Sunday,” said S.", "“Nobody will believe us,” said ANOTHER.", "“That was long ago,” said S.",
    "“The bread is still warm,” said ANOTHER.", "“Tell me a story,” S begged, and ANOTHER told one about a giant.",
)  # fmt: skip
SCENES = (
    "The river ran high and brown.", "Snow fell on the quiet hills.", "A cat slept near the warm stove.",
    "Wind moved through the tall grass.", "Two boats waited in the mist.", "The clock struck nine.", "Children played in the street.",
    "The moon rose over the roofs.", "It rained for three days.", "The road was long and full of stones.", "An owl cried in the dark.",
    "Smoke rose from the chimneys.", "The sun was warm on the old stones.", "A fox crossed the road and was gone.",
    "Thunder rolled over the valley.", "The bells rang for the feast.", "There was music in the square, and everyone danced.",
    "The tables were full of cakes and wine.", "Lanterns hung in all the trees.", "A stranger came with a wagon full of books.",
    "The leaves turned yellow and red.", "Swallows flew low over the water.", "The ice on the lake began to sing.",
    "A dog barked somewhere far away.", "The market was loud and full of colours.", "Bees hummed in the lime trees.",
    "The night was clear and cold.", "Fog lay over the fields.", "The first flowers came up through the snow.",
    "All the windows were dark but one.", "A storm broke two old trees.", "The harvest was good that year.",
    "Geese flew south in a long line.", "The wagon wheels sank into the mud.", "Somebody had left a light burning.",
    "Old songs came from the inn.", "Nobody was on the road but the wind.", "The frost drew flowers on the glass.",
    "The smell of fresh hay was everywhere.", "Frogs sang all night.", "The hens would not come out of the rain.",
    "A rainbow stood over the valley.", "The mayor gave a speech that nobody understood.", "The miller's children flew a kite.",
    "A wedding was held, with three cakes and a fiddle.", "The ferry could not cross that day.", "Far away a horn was blown.",
    "It was so still that one could hear the snow fall.",
)  # fmt: skip
# what belongs together, in this order
PLOTS = (
    (
        "S set out before sunrise with bread and cheese in a bag.", "The road led through the forest and over two hills.",
        "At noon HE rested under a lime tree.", "In the evening HE saw lights, and a dog began to bark.",
        "An old man opened and let HIM in.",
    ),
    (
        "The feast began when the first star was seen.", "Everyone brought something to eat.",
        "S danced with ANOTHER, and then with everyone else.", "At midnight a cake was carried in, as high as a child.",
        "In the morning HIS feet hurt.",
    ),
    (
        "Dark clouds came over the hills.", "S ran to bring in the washing.", "Then the storm broke, and hail fell on the roofs.",
        "ANOTHER counted between lightning and thunder.", "When it was over, the air smelled of wet earth.",
    ),
    (
        "A child was missing.", "S and ANOTHER took lanterns and searched until late.",
        "They called and called, but only an owl answered.", "At last S found the child asleep in the hay.",
        "There was soup for everyone that night.",
    ),
    (
        "S went to the market to sell a cow.", "Nobody wanted to pay for such a thin one.", "ANOTHER offered a sack of nuts for it.",
        "S thought about it for a long time.", "In the end HE kept the cow and went home.",
    ),
    (
        "S fell ill in the night.", "ANOTHER sat by the bed and read aloud.", "On the third day the fever went down.",
        "On the fifth day HE asked for pancakes.", "So everyone knew that HE was well again.",
    ),
    (
        "A stranger knocked at the door of S.", "She was wet to the skin and asked for a place by the fire.",
        "S gave the stranger dry clothes.", "Nobody asked where she came from.",
        "In the morning she was gone, and a silver coin lay on the bench.",
    ),
    (
        "S and ANOTHER rowed out on the lake.", "The water was as smooth as glass.", "Something big moved far below.",
        "“That was a fish,” said ANOTHER.", "“I hope so,” said S, and they rowed home a little faster.",
    ),
    (
        "The winter was so cold that birds fell from the sky.", "S kept them warm in a drawer.", "ANOTHER laughed, but brought seeds.",
        "When spring came, HE opened the window.", "One of them stayed.",
    ),
    (
        "S could not find HIS hat.", "HE looked behind the door and under the bench.", "ANOTHER looked in the oven.",
        "A goat came by with a hat on its head.", "“It suits the goat better,” said ANOTHER.",
    ),
    (
        "There was a dispute about a pear tree.", "S said that it belonged to HIS grandfather.",
        "ANOTHER said that pears belong to those who pick them.", "The mayor listened and ate a pear.",
        "“Plant a second one,” said the mayor.",
    ),
    (
        "S wanted to learn to play the fiddle.", "The first week even the cats left the house.", "In the second week ANOTHER left, too.",
        "But S did not give up.", "At the harvest feast HE played, and people wept for joy.",
    ),
)  # fmt: skip
TIMES = (
    "One evening", "The next morning", "At midnight", "Before sunrise", "On Sunday", "In the autumn", "After the feast", "A week later",
    "In the first light", "When the rain had stopped", "Late in the night", "On a grey afternoon", "In spring", "Soon after",
    "On market day", "While the others slept", "As soon as it was dark", "Many years ago", "That winter", "At noon",
)  # fmt: skip
LINKS = ("Then", "Later", "After that", "Meanwhile", "In the end", "So", "But", "And")

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def invented(generator):
    """A word that nobody has heard: zorvak, milu, tenobar."""
    count = generator.choice((2, 2, 2, 3))
    syllables = [
        generator.choice(CONSONANTS) + generator.choice(VOWELS) + (generator.choice(CONSONANTS) if generator.random() < 0.4 else "")
        for _ in range(count)
    ]
    return "".join(syllables)
