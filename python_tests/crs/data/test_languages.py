"""Titles in other languages and scripts, and texts as long as people paste them."""

import time

import pytest

from crs_fast.crs.data import load_dataset
from crs_fast.crs.data.dialogue import Item, Turn
from crs_fast.crs.data.entity_linking import MAX_CHARACTERS, TitleIndex, link_items
from crs_fast.crs.data.entity_spans import locate_items
from crs_fast.crs.recommender import Recommender

TITLES = [
    # Chinese
    ("流浪地球", 2019), ("流浪地球2", 2023), ("霸王别姬", 1993), ("活着", 1994), ("她", 2013),
    ("你好，李焕英", 2021), ("X战警", 2000), ("Titanic", 1997), ("臥虎藏龍", 2000), ("英雄", 2002),
    # Japanese
    ("千と千尋の神隠し", 2001), ("君の名は。", 2016), ("タイタニック", 1997), ("七人の侍", 1954),
    ("となりのトトロ", 1988), ("それ", 2017), ("ハリー・ポッターと賢者の石", 2001), ("マン", 2000),
    # Korean
    ("기생충", 2019), ("올드보이", 2003), ("살인의 추억", 2003), ("괴물", 2006), ("링", 2002),
    # Thai, Lao, Khmer, Burmese
    ("ฉลาดเกมส์โกง", 2017), ("พี่มาก..พระโขนง", 2013), ("มา", 2019), ("ສະບາຍດີຫຼວງພະບາງ", 2008),
    ("ដើម្បីជីវិត", 2010), ("မြတ်နိုး", 2011),
    # Turkish
    ("Kış Uykusu", 2014), ("Babam ve Oğlum", 2005), ("İftarlık Gazoz", 2016), ("Ayla", 2017),
    # French, Italian
    ("Amélie", 2001), ("Intouchables", 2011), ("L'Auberge espagnole", 2002), ("Œdipe", 1967),
    ("La vita è bella", 1997), ("L'avventura", 1960), ("À bout de souffle", 1960),
    # Indic
    ("दंगल", 2016), ("लगान", 2001), ("राग", 1990), ("रंग", 1993), ("दिलवाले दुल्हनिया ले जायेंगे", 1995),
    ("পথের পাঁচালী", 1955), ("பாகுபலி", 2015), ("బాహుబలి", 2015), ("ದೃಶ್ಯ", 2014),
    # Arabic, Hebrew, Persian, Russian, Greek, Vietnamese, German, Polish
    ("المومياء", 1969), ("باب الحديد", 1958), ("ואלס עם באשיר", 2008),
    ("جدایی نادر از سیمین", 2011),
    ("Ёлки", 2010), ("Иди и смотри", 1985), ("Κυνόδοντας", 2009), ("Mùi đu đủ xanh", 1993),
    ("Das Boot – Größe", 1981), ("Zimna wojna w Łodzi", 2018),
    # Digits
    ("2046", 2004), ("District 9", 2009), ("THX 1138", 1971),
]  # fmt: skip
ITEMS = [Item(title, title, year) for title, year in TITLES]
INDEX = TitleIndex(ITEMS)


def linked(text):
    """(what stands in the text, item) of each mention."""
    mentions = link_items(text, INDEX)
    Turn("seeker", text, tuple(mentions))  # ordered, non-overlapping, inside the text
    return [(text[m.start : m.end], m.item_id) for m in mentions]


FOUND = {
    "chinese": [
        ("我昨天看了流浪地球，很好看", "流浪地球"),
        ("流浪地球2比流浪地球好", "流浪地球2", "流浪地球"),
        ("推荐《霸王别姬》（1993）吧", "霸王别姬》（1993）=霸王别姬"),
        ("看过活着吗？", "活着"),
        ("我爱《她》", "她"),
        ("她(2013)", "她(2013)=她"),
        ("你好李焕英很感人", "你好李焕英=你好，李焕英"),
        ("看了Titanic很感动", "Titanic"),
        ("X战警不错", "X战警"),
        ("霸王别姬１９９３", "霸王别姬"),
        ("霸王别姬 1993年", "霸王别姬 1993=霸王别姬"),
        ("霸王别姬（１９９３）", "霸王别姬（１９９３）=霸王别姬"),
    ],
    "japanese": [
        ("千と千尋の神隠しが好きです", "千と千尋の神隠し"),
        ("君の名は。を見た", "君の名は=君の名は。"),
        ("昨日タイタニックを見ました", "タイタニック"),
        ("ﾀｲﾀﾆｯｸは？", "ﾀｲﾀﾆｯｸ=タイタニック"),
        ("「七人の侍」と「となりのトトロ」", "七人の侍", "となりのトトロ"),
        ("「それ」が怖い", "それ"),
        ("ハリーポッターと賢者の石がいい", "ハリーポッターと賢者の石=ハリー・ポッターと賢者の石"),
    ],
    "korean": [
        ("기생충을 봤어요", "기생충"),
        ("저는 올드보이는 별로", "올드보이"),
        ("기생충이랑 괴물이 좋아요", "기생충", "괴물"),
        ("살인의추억에서는 누가 나와?", "살인의추억=살인의 추억"),
        ("살인의 추억이 최고", "살인의 추억"),
        ("괴물입니다", "괴물"),
        ("Titanic을 봤다", "Titanic"),
        ("\u1100\u1175\u1109\u1162\u11bc\u110e\u116e\u11bc\u110b\u1173\u11af 봤어요",
         "\u1100\u1175\u1109\u1162\u11bc\u110e\u116e\u11bc=기생충"),
    ],
    "south-east asian": [
        ("ฉันชอบฉลาดเกมส์โกงมาก", "ฉลาดเกมส์โกง"),
        ("พี่มากพระโขนงสนุก", "พี่มากพระโขนง=พี่มาก..พระโขนง"),
        ("“มา”", "มา"),
        ("ຂ້ອຍມັກສະບາຍດີຫຼວງພະບາງຫຼາຍ", "ສະບາຍດີຫຼວງພະບາງ"),
        ("ខ្ញុំចូលចិត្តដើម្បីជីវិតណាស់", "ដើម្បីជីវិត"),
        ("မြတ်နိုးကိုကြိုက်တယ်", "မြတ်နိုး"),
    ],
    "turkish": [
        ("Kış Uykusu'nu izledim", "Kış Uykusu"),
        ("kış uykusu’nda kim var", "kış uykusu=Kış Uykusu"),
        ("KIŞ UYKUSU güzel", "KIŞ UYKUSU=Kış Uykusu"),
        ("iftarlık gazoz'u sevdim", "iftarlık gazoz=İftarlık Gazoz"),
        ("Titanic'i, Ayla'yı, Babam ve Oğlum'dan", "Titanic", "Ayla", "Babam ve Oğlum"),
        ("Ayla'nın sonu ve Titanic'le", "Ayla", "Titanic"),
    ],
    "french and italian": [
        ("j'ai vu Intouchables et Amélie", "Intouchables", "Amélie"),
        ("la fin d'Amélie, l'Intouchables, qu’Amélie", "Amélie", "Intouchables", "Amélie"),
        ("L’AUBERGE ESPAGNOLE est drôle", "L’AUBERGE ESPAGNOLE=L'Auberge espagnole"),
        ("à l'auberge espagnole", "l'auberge espagnole=L'Auberge espagnole"),
        ("oedipe ou Œdipe", "oedipe=Œdipe", "Œdipe"),
        ("A bout de souffle", "A bout de souffle=À bout de souffle"),
        ("la storia dell'avventura, L'Avventura", "L'Avventura=L'avventura"),
        ("l'anima de La vita e' bella", "La vita e' bella=La vita è bella"),
    ],
    "indic": [
        ("मैंने दंगल देखी", "दंगल"),
        ("लगान अच्छी है", "लगान"),
        ("राग और रंग", "राग", "रंग"),
        ("दिलवाले दुल्हनिया ले जायेंगे देखो", "दिलवाले दुल्हनिया ले जायेंगे"),
        ("পথের পাঁচালী দেখেছি", "পথের পাঁচালী"),
        ("பாகுபலி பிடிக்கும்", "பாகுபலி"),
        ("బాహుబలి బాగుంది", "బాహుబలి"),
        ("ದೃಶ್ಯ ಚೆನ್ನಾಗಿದೆ", "ದೃಶ್ಯ"),
    ],
    "others": [
        ("شاهدت المُومياء", "المُومياء=المومياء"),
        ("باب الحديد رائع", "باب الحديد"),
        ("جدايي نادر از سيمين", "جدايي نادر از سيمين=جدایی نادر از سیمین"),
        ("ראיתי את ואלס עם באשיר", "ואלס עם באשיר"),
        ("елки и ЁЛКИ", "елки=Ёлки", "ЁЛКИ=Ёлки"),
        ("ИДИ И СМОТРИ", "ИДИ И СМОТРИ=Иди и смотри"),
        ("ΚΥΝΟΔΟΝΤΑΣ", "ΚΥΝΟΔΟΝΤΑΣ=Κυνόδοντας"),
        ("mui du du xanh hay", "mui du du xanh=Mùi đu đủ xanh"),
        ("das boot - GRÖSSE", "das boot - GRÖSSE=Das Boot – Größe"),
        ("zimna wojna w lodzi", "zimna wojna w lodzi=Zimna wojna w Łodzi"),
    ],
    "digits": [
        ("district ９ was fun", "district ９=District 9"),
        ("THX １１３８", "THX １１３８=THX 1138"),
        ("《２０４６》", "２０４６=2046"),
        ("دیستریکت district ٩", "district ٩=District 9"),
        ("Titanic （１９９７）", "Titanic （１９９７）=Titanic"),
        ("Titanic (१९९७)", "Titanic (१९९७)=Titanic"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "names"),
    [(text, names) for cases in FOUND.values() for text, *names in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_titles_are_found_whole(text, names):
    expected = [tuple(name.split("=")) if "=" in name else (name, name) for name in names]
    assert linked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "她很好",
        "活 着",
        "我们活，着急",
        "それはいい",
        "アイアンマンが好き",  # a part of a katakana word
        "기생충학을 공부해",
        "링이 예쁘다",
        "มาแล้ว",
        "मैं रागिनी हूँ",
        "रांग",
        "रग",
        "दगल",
        "लगन",
        "Aylar önce",
        "L avventura",
        "don't, Titanics",
        "2046",
        "Амели",
    ],
)
def test_other_words_are_no_titles(text):
    assert linked(text) == []


@pytest.mark.parametrize("title", [title for title, _ in TITLES])
def test_every_title_with_its_year_is_itself(title):
    year = next(year for name, year in TITLES if name == title)
    text = f"{title} ({year})"
    assert linked(text) == [(text, title)]


@pytest.mark.parametrize(
    ("text", "title", "found"),
    [
        ("기생충을 봤어요", "기생충", "기생충"),
        ("Kış Uykusu'nu izledim", "Kış Uykusu", "Kış Uykusu"),
        ("昨天看了流浪地球", "流浪地球", "流浪地球"),
        ("la fin d'Amélie", "Amélie", "Amélie"),
        ("मैंने लगान देखी", "लगान", "लगान"),
        ("ฉันชอบฉลาดเกมส์โกงมาก", "ฉลาดเกมส์โกง", "ฉลาดเกมส์โกง"),
    ],
)
def test_known_items_are_located(text, title, found):
    (mention,) = locate_items(text, [Item("x", title)])
    assert text[mention.start : mention.end] == found


def seconds(index, text):
    start = time.perf_counter()
    index.link(text)
    return time.perf_counter() - start


def listed(n):
    """A watch list of about n words."""
    return ", ".join(STARTER[i % len(STARTER)] for i in range(n // 3))


STARTER = [item.title for item in load_dataset("starter").items]
EVERYDAY = [Item("a", "It"), Item("b", "Her"), Item("c", "Get Out"), Item("d", "Up")]
LONG = {
    "a watch list": (STARTER, listed),
    "everyday words": (None, lambda n: "it is up to her to get out of it " * (n // 10)),
    "capitals": (None, lambda n: "It Is Up To Her To Get Out Of It " * (n // 10)),
    "punctuation": (None, lambda n: "Her" + "." * 6 * n + "It"),
    "white space": (None, lambda n: ("It" + " " * 200 + "\n") * (n // 40)),
    "one word": (None, lambda n: "it" * 3 * n),
    "apostrophes": (None, lambda n: "it's " * n),
    "years": (None, lambda n: "It (2017) " * n),
    "chinese": ([t for t, _ in TITLES], lambda n: "我看了活着她流浪地球" * (n // 3)),
    "korean": ([t for t, _ in TITLES], lambda n: "기생충을 " * n),
    "korean without spaces": ([t for t, _ in TITLES], lambda n: "기생충" * 2 * n),
    "thai": ([t for t, _ in TITLES], lambda n: "ฉลาดเกมส์โก" * (n // 4)),
    "marks": (None, lambda n: "e" + "\u0301" * 5 * n),
}


@pytest.mark.parametrize("name", LONG)
def test_a_hundred_thousand_words_take_time_in_proportion(name):
    titles, text = LONG[name]
    index = TitleIndex(EVERYDAY if titles is None else [Item(t, t) for t in titles])
    short, long = (min(seconds(index, text(n)) for _ in range(2)) for n in (10_000, 100_000))
    # Ten times the text; a hundred times where the time is quadratic.
    assert long < 40 * short + 0.5
    assert long < 20  # 2 s on a machine of its own


def test_a_text_past_the_limit_is_refused():
    index = TitleIndex(EVERYDAY)
    assert MAX_CHARACTERS >= 1_000_000
    with pytest.raises(ValueError, match=r"link_items: text must have at most 1000000 characters"):
        index.link("a" * (MAX_CHARACTERS + 1))
    recommender = object.__new__(Recommender)
    for given in ({}, {"items": []}):
        message = {"role": "user", "content": "a" * (MAX_CHARACTERS + 1), **given}
        with pytest.raises(ValueError, match=r"respond: .* at most 1000000 characters \(got 100"):
            recommender.turns([message])
