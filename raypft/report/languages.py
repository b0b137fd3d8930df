"""Families and scripts of languages, as figures group them. Codes: ISO 639-1 or -3, with a script or without."""

from __future__ import annotations

FAMILIES = {
    "Germanic": "en eng de deu nl nld af afr sv swe da dan no nb nob nn nno is isl fo fao lb ltz",
    "Romance": "es spa fr fra it ita pt por ro ron ca cat gl glg oc oci ast scn lat la",
    "Slavic": "ru rus uk ukr be bel bg bul pl pol cs ces sk slk sl slv hr hrv sr srp bs bos mk mkd hsb",
    "Baltic": "lt lit lv lvs lav ltg",
    "Hellenic": "el ell grc",
    "Celtic": "ga gle cy cym gd gla br bre",
    "Indo-Aryan": "hi hin ur urd bn ben mr mar gu guj pa pan ne npi nep si sin or ory as asm sa san sd snd bho mai",
    "Iranian": "fa fas pes prs ku kmr ckb tg tgk ps pbt pus",
    "Other Indo-European": "hy hye sq als sqi",
    "Turkic": "tr tur az aze azj azb kk kaz uz uzn uzb ky kir tt tat tk tuk ug uig ba bak",
    "Uralic": "fi fin et est ekk hu hun kpv myv olo",
    "Afro-Asiatic": "ar ara arb arz apc he heb mt mlt am amh so som ha hau ti tir om gaz orm",
    "Niger-Congo": "sw swh swa yo yor ig ibo zu zul xh xho rw kin sn sna wo wol lg lug ln lin nso st sot tn tsn bm bam",
    "Sino-Tibetan": "zh zho yue cmn my mya bo bod dz dzo lus",
    "Japonic": "ja jpn",
    "Koreanic": "ko kor",
    "Austroasiatic": "vi vie km khm sat",
    "Kra-Dai": "th tha lo lao shn",
    "Austronesian": "id ind ms msa zsm jv jav su sun tl tgl fil ceb ilo war mi mri sm smo plt mg mlg",
    "Dravidian": "ta tam te tel ml mal kn kan",
    "Kartvelian": "ka kat",
    "Mongolic": "mn mon khk",
    "Basque": "eu eus",
    "Quechuan": "qu quy quz que",
    "Aymaran": "ay aym ayr",
    "Tupian": "gn grn",
    "Uto-Aztecan": "nah tar hch",
    "Chibchan": "bzd",
    "Arawakan": "cni",
    "Oto-Manguean": "oto",
    "Panoan": "shp",
}
SCRIPTS = {
    "Cyrl": "ru uk be bg sr mk kk ky tg mn tt ba",
    "Arab": "ar fa ur ps sd ug ckb",
    "Deva": "hi mr ne sa bho mai",
    "Hans": "zh",
    "Jpan": "ja",
    "Hang": "ko",
    "Grek": "el",
    "Hebr": "he",
    "Thai": "th",
    "Beng": "bn as",
    "Taml": "ta",
    "Telu": "te",
    "Mlym": "ml",
    "Knda": "kn",
    "Gujr": "gu",
    "Guru": "pa",
    "Sinh": "si",
    "Mymr": "my",
    "Geor": "ka",
    "Armn": "hy",
    "Ethi": "am ti",
    "Khmr": "km",
    "Laoo": "lo",
}
"""Of codes that say no script; any other two or three letters are taken for Latin where the family is known."""
UNKNOWN = "other"


def family(code: str) -> str:
    """The family of a language, `other` where it is not known."""
    return _find(FAMILIES, code.split("_")[0]) or UNKNOWN


def script(code: str) -> str:
    """The ISO 15924 script of a language, `other` where it is not known."""
    base, _, named = code.partition("_")
    return (named if len(named) == 4 else "") or _find(SCRIPTS, base) or ("Latn" if _find(FAMILIES, base) else UNKNOWN)


def _find(groups: dict[str, str], code: str) -> str:
    return next((group for group, codes in groups.items() if code in codes.split()), "")
