"""Languages that Whisper was trained on: ISO 639 codes, as its tokens have them, and English names, as OpenAI's API says them."""

from __future__ import annotations

from types import MappingProxyType

LANGUAGES = MappingProxyType(
    dict(
        pair.split("=")
        for pair in """
        en=english zh=chinese de=german es=spanish ru=russian ko=korean fr=french ja=japanese pt=portuguese tr=turkish pl=polish
        ca=catalan nl=dutch ar=arabic sv=swedish it=italian id=indonesian hi=hindi fi=finnish vi=vietnamese he=hebrew uk=ukrainian
        el=greek ms=malay cs=czech ro=romanian da=danish hu=hungarian ta=tamil no=norwegian th=thai ur=urdu hr=croatian
        bg=bulgarian lt=lithuanian la=latin mi=maori ml=malayalam cy=welsh sk=slovak te=telugu fa=persian lv=latvian bn=bengali
        sr=serbian az=azerbaijani sl=slovenian kn=kannada et=estonian mk=macedonian br=breton eu=basque is=icelandic hy=armenian
        ne=nepali mn=mongolian bs=bosnian kk=kazakh sq=albanian sw=swahili gl=galician mr=marathi pa=punjabi si=sinhala km=khmer
        sn=shona yo=yoruba so=somali af=afrikaans oc=occitan ka=georgian be=belarusian tg=tajik sd=sindhi gu=gujarati am=amharic
        yi=yiddish lo=lao uz=uzbek fo=faroese ht=haitian_creole ps=pashto tk=turkmen nn=nynorsk mt=maltese sa=sanskrit
        lb=luxembourgish my=myanmar bo=tibetan tl=tagalog mg=malagasy as=assamese tt=tatar haw=hawaiian ln=lingala ha=hausa
        ba=bashkir jw=javanese su=sundanese yue=cantonese
        """.split()
    )
)
_OTHER_NAMES = {
    "burmese": "my", "valencian": "ca", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb", "pushto": "ps", "panjabi": "pa",
    "moldavian": "ro", "moldovan": "ro", "sinhalese": "si", "castilian": "es", "mandarin": "zh", "jv": "jw", "javanese": "jw",
}  # fmt: skip


def name_of(code: str) -> str:
    """A language's English name; its code where there is none."""
    return LANGUAGES.get(code, code).replace("_", " ")


def code_of(said: str) -> str | None:
    """The code of a language that is given by code ("pt", "pt-BR") or English name; None where it is neither."""
    word = said.strip().lower()
    by_name = {name.replace("_", " "): code for code, name in LANGUAGES.items()} | _OTHER_NAMES
    if word in LANGUAGES or word in by_name:
        return by_name.get(word, word)
    region = word.replace("_", "-").partition("-")[0]
    return region if region in LANGUAGES else None
