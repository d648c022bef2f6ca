"""Endless stories of a small world, which tell facts and come back to them.

A fact is told once ("Anna hid the pearl under the bridge.") and returns in later sentences ("Boris dreamed of the pearl under the
bridge.") and in questions ("Where is the pearl? The pearl is under the bridge."). What can be known only from the fact stands in brackets
in the texts here: "Where is the pearl? The pearl is[ under the bridge]." The sentence that tells the fact stands in braces. Now and then
somebody is cut short, which "~" marks: what comes then cannot be known and is not to be learned.
"""

import re

from selkey.bench.storyteller import words

# Names in capitals are filled in: WHO the fact is about, ITS value (in brackets: to be remembered), KEY what it is asked by, S who the
# paragraph is about, ANOTHER somebody else. A fact: (as it is told, as it returns, as it is asked).
FACTS = {
    "place": (
        (
            "WHO hid the KEY ITS.", "WHO hid the KEY ITS.", "TIME WHO hid the KEY ITS.", "WHO buried the KEY ITS.", "WHO put the KEY ITS.",
            "WHO left the KEY ITS.", "WHO lost the KEY ITS.", "The KEY is ITS.", "The KEY lay ITS.", "WHO took the KEY and hid it ITS.",
            "Nobody saw how WHO hid the KEY ITS.", "WHO showed ANOTHER the KEY ITS.",
        ),
        (
            "S thought of the KEY[ ITS].", "S remembered the KEY[ ITS].", "S dreamed of the KEY[ ITS].", "The KEY was still[ ITS].",
            "S looked for the KEY and found it[ ITS].", "“The KEY is[ ITS],” said S.", "“Is the KEY still[ ITS]?” asked ANOTHER.",
            "S wanted the KEY, so HE went to look[ ITS].", "S told ANOTHER that the KEY was[ ITS].", "S passed by and saw the KEY[ ITS].",
            "“Where is the KEY?” asked ANOTHER. “The KEY is[ ITS],” said S.", "So S went back to the KEY[ ITS].",
            "Nobody but S knew of the KEY[ ITS].", "S found the KEY[ ITS] and let it lie.",
        ),
        ("Where is the KEY? The KEY is[ ITS].", "Where is the KEY?[ CAPITAL]."),
    ),
    "trade": (
        ("KEY is the ITS.", "KEY is the ITS of the village.", "KEY was the ITS.", "Everyone knew KEY the ITS."),
        (
            "KEY the[ ITS] DEED.", "KEY the[ ITS] DEED.", "KEY the[ ITS] DEED.", "TIME KEY the[ ITS] DEED.",
            "ANOTHER met KEY the[ ITS] on the road.", "KEY was a good[ ITS].", "ANOTHER sent for KEY the[ ITS].",
        ),
        ("What is the trade of KEY? KEY is the[ ITS].", "Who is KEY? KEY is the[ ITS]."),
    ),
    "home": (
        ("KEY comes from ITS.", "KEY was born in ITS.", "KEY had come from ITS many years ago."),
        (
            "KEY from[ ITS] DEED.", "KEY told stories of[ ITS].", "KEY longed for[ ITS].", "A letter came for KEY from[ ITS].",
            "“One day I will go back to[ ITS],” said KEY.",
        ),
        ("Where does KEY come from? From[ ITS].", "Where does KEY come from? KEY comes from[ ITS]."),
    ),
    "wish": (
        ("KEY wished for ITS.", "KEY had always wanted ITS.", "TIME KEY wished for ITS."),
        (
            "KEY still dreamed of[ ITS].", "“If only I had[ ITS],” said KEY.", "At the market KEY asked for[ ITS].",
            "ANOTHER promised KEY[ ITS].", "KEY had saved some money for[ ITS].",
        ),
        ("What does KEY wish for? KEY wishes for[ ITS].", "What does KEY wish for?[ CAPITAL]."),
    ),
    "word": (
        ("The word of the KEY is ITS.", "The secret word of the KEY is ITS.", "WHO learned the word of the KEY: ITS."),
        (
            "“The word of the KEY is[ ITS],” said S.", "S whispered the word of the KEY:[ ITS].",
            "S stood before the KEY and said the word:[ ITS].", "S had not forgotten the word of the KEY:[ ITS].",
        ),
        ("What is the word of the KEY? The word is[ ITS].", "Say the word of the KEY:[ ITS].", "What is the word of the KEY? It is[ ITS]."),
    ),
    "pet": (
        ("WHO has a KEY called ITS.", "WHO had a KEY, and the KEY was called ITS.", "The KEY of WHO is called ITS."),
        (
            "The KEY[ ITS] lay down and slept.", "WHO called the KEY[ ITS].", "S played with the KEY[ ITS].",
            "The KEY[ ITS] was hungry again.", "The KEY[ ITS] ran after ANOTHER.", "S gave some bread to the KEY[ ITS].",
        ),
        ("What is the KEY called? The KEY is called[ ITS].", "What is the KEY called? It is called[ ITS]."),
    ),
}  # fmt: skip
_KINDS = ("place", "place", "place", "place", "trade", "home", "wish", "word", "word", "pet")
# one name in so many is invented on the spot, so that words from outside the world can be told, too
_INVENTED = 0.12
CUT, _CUT_SHORT = "~", 0.03
# share of the returns that are to the fact that was not mentioned for longest
_OLDEST = 0.5
# how likely each of two is to come new with a paragraph
_NEWCOMER = 0.5
# a fact is not mentioned again for one of so many sentences: the many are what teaches to look far back
_RESTS = (3, 3, 8, 16, 28, 40)
# share of the paragraphs in which one thing leads to another
_PLOT = 0.3
_MARKS = re.compile(r"[\[\]{}~]")
# he or she may stand where the sentence begins with its subject
_BY_SUBJECT = re.compile(r"(\w+ |After that |In the end )?S\b")
_BLANK = re.compile(r"\b(TIME|WHO|KEY|ITS|CAPITAL|ANOTHER|HE|HIS|HIM|S)\b")


def bare(text):
    """What is read: the text without brackets, braces and marks."""
    return _MARKS.sub("", text)


class World:
    """What is so in one story: who lives there, and what was told so far.

    Args:
        generator: `random.Random`.
        memory: a fact that was not mentioned in so many sentences is forgotten, and may be told anew; None: never.
        spread: how long facts rest, 1: as in texts of 512 tokens.
    """

    def __init__(self, generator, memory=None, spread=1.0):
        self.generator, self.memory, self.spread = generator, memory, spread
        self.people = [self._name(person) for person in generator.sample(words.WOMEN + words.MEN, 6)]
        self.facts, self.secrets, self.now = [], [], 0
        self.begin()

    def sentences(self, plain):
        """Sentences and paragraphs without end.

        Args:
            plain: share of the sentences that have nothing to do with a fact.
        """
        generator = self.generator
        while True:
            self.begin()
            is_question = len(self._rested()) > 1 and generator.random() < 0.2
            for number in range(1 if is_question else generator.randint(2, 7)):
                self.now += 1
                if self.memory:
                    self.facts = [fact for fact in self.facts if self.now - fact["last"] <= self.memory]
                chance = generator.random()
                is_told, is_cut = False, not is_question and generator.random() < _CUT_SHORT
                if is_cut:
                    said = self.plain().split(" ")
                    sentence = " ".join(said[: generator.randint(1, len(said) - 1)]) + CUT
                elif is_question:
                    sentence = self.asked()
                elif chance < max(0.1, 0.8 - 0.1 * len(self.facts)) * (1 - plain / 2):
                    sentence, is_told = self.told(), True
                elif not self._rested() or generator.random() < plain:
                    sentence = self.plain()
                else:
                    sentence = self.asked() if generator.random() < 0.15 else self.returned()
                sentence = sentence if number == 0 else " " + sentence
                yield f"{{{sentence}}}" if is_told else sentence
            yield "\n"

    def begin(self):
        """A new paragraph begins, and may be about somebody else."""
        for _ in range(2):
            if self.generator.random() < _NEWCOMER:
                newcomer = self.generator.choice([person for person in words.WOMEN + words.MEN if person not in self.people])
                self.people = [*self.people[1:], self._name(newcomer)]
        # the last that came are the likeliest: a story that knows one name only would go on with it for ever
        self.hero, self.companion = self.generator.sample(self.people[-3:], 2)
        self.named = False
        self.plot = list(self.generator.choice(words.PLOTS)) if self.generator.random() < _PLOT else []

    def told(self):
        """A sentence with a new fact."""
        generator, kind, capital = self.generator, self.generator.choice(_KINDS), None
        who = generator.choice(self.people)
        if kind == "place":
            key, place = self._word(words.THINGS), self._word(list(words.PLACES))
            before = words.PLACES[place] if place in words.PLACES and generator.random() < 0.8 else generator.choice(words.BEFORE)
            its = f"{before} the {place}"
            capital = its.capitalize()
        elif kind == "pet":
            key, its = self._new(words.ANIMALS), words.invented(generator).capitalize()
        elif kind == "word":
            key, its = self._word(words.LOCKED), words.invented(generator)
        else:
            known = [fact["KEY"] for fact in self.facts + self.secrets if fact["kind"] == kind]
            left = [person for person in self.people if person not in known]
            if not left:
                return self.plain()
            key = who = generator.choice(left)
            if kind == "trade":
                its = self._new(list(words.TRADES))
            elif kind == "home":
                its = self._name(generator.choice(words.TOWNS))
            else:
                its = self._word(words.THINGS)
                its = f"{'an' if its[0] in words.VOWELS else 'a'} {its}"
                capital = its.capitalize()
        fact = {"kind": kind, "WHO": who, "KEY": key, "ITS": its, "CAPITAL": capital}
        fact |= {"last": self.now, "rest": generator.choice(_RESTS) * self.spread}
        self.facts.append(fact)
        return self._filled(generator.choice(FACTS[kind][0]), fact)

    def returned(self):
        """A sentence that comes back to a fact."""
        return self._mentioned(1)

    def asked(self, fact=None):
        """A question and its answer."""
        return self._mentioned(2, fact)

    def secret(self):
        """(a sentence with a new fact, the fact); the story will never come back to it, nor tell anything of the same key or value."""
        count = len(self.facts)
        while len(self.facts) == count:
            sentence = self.told()
        self.secrets.append(self.facts.pop())
        return sentence, self.secrets[-1]

    def _mentioned(self, how, fact=None):
        if fact is None:
            # often what was not mentioned for long: what was mentioned just now is no more than repeated
            is_old, rested = self.generator.random() < _OLDEST, self._rested()
            fact = min(rested, key=lambda fact: fact["last"]) if is_old else self.generator.choice(rested)
        fact |= {"last": self.now, "rest": self.generator.choice(_RESTS) * self.spread}
        return self._filled(self.generator.choice(FACTS[fact["kind"]][how]), fact)

    def _rested(self):
        return [fact for fact in self.facts if self.now - fact["last"] > fact["rest"]]

    def plain(self):
        """A sentence without a fact; the next one of a plot, if one has begun."""
        if self.plot:
            return self._filled(self.plot.pop(0))
        generator, chance = self.generator, self.generator.random()
        if chance < 0.35:
            return generator.choice(words.SCENES)
        if chance < 0.5:
            return self._filled(generator.choice(words.SPEECH))
        deed = generator.choice(words.DEEDS)
        if chance < 0.65:
            return self._filled(f"TIME {deed}.")
        if chance < 0.75:
            return self._filled(f"{generator.choice(words.LINKS)} {deed}.")
        return self._filled(deed + ".")

    def _filled(self, sentence, fact=None):
        generator, values = self.generator, dict(fact or {})
        if "DEED" in sentence:
            deeds = words.TRADES.get(values["ITS"]) if generator.random() < 0.7 else None
            sentence = sentence.replace("DEED", generator.choice(deeds) if deeds else generator.choice(words.DEEDS).removeprefix("S "))
        # whose sentence it is: that of the hero, or of whom the fact is about
        subject = values["KEY"] if values.get("kind") in ("trade", "home", "wish") else self.hero
        woman = subject in words.WOMEN or (subject not in words.MEN and subject[-1] in words.VOWELS)
        he, his, him = ("she", "her", "her") if woman else ("he", "his", "him")
        nobody_else = (subject, values.get("WHO"))
        another = self.companion
        if another in nobody_else:
            another = generator.choice([person for person in self.people if person not in nobody_else])
        by_name = fact is not None or not self.named or not _BY_SUBJECT.match(sentence) or generator.random() < 0.5
        values |= {"TIME": generator.choice(words.TIMES), "HE": he, "HIS": his, "HIM": him, "ANOTHER": another}
        values["S"] = subject if by_name else he
        self.named = subject == self.hero and "WHO" not in sentence and (self.named or bool(re.search(r"\bS\b", sentence)))
        text = _BLANK.sub(lambda blank: values[blank[0]], sentence)
        return text[0].upper() + text[1:]

    def _new(self, among):
        """One of the words that no fact has; an invented one, where none is left."""
        used = {word for fact in self.facts + self.secrets for word in (fact["KEY"], fact["ITS"].split()[-1])}
        left = [word for word in among if word not in used]
        return self.generator.choice(left) if left else words.invented(self.generator)

    def _word(self, among):
        return words.invented(self.generator) if self.generator.random() < _INVENTED else self._new(among)

    def _name(self, name):
        return words.invented(self.generator).capitalize() if self.generator.random() < _INVENTED else name
