"""What the file name of a photo says: words of a person, or the counter of a camera."""

from __future__ import annotations

import re
import unicodedata

from fastsd_lib.core.text import one_line

# What cameras, phones, messengers and browsers call a photo when nobody named it.
_MACHINE_NAMES = re.compile(
    r"""(?ix)^(?:
      (?: (?:img|image|imag|photo|picture|pic|pict|file|download|unnamed|untitled|scan|video|frame
            |crop|cropped|edited) [\s.-]* (?:\d[\d\s.:~-]*)?             # says nothing, with or without number
        | (?:dsc|dscn|dscf|dcim|pxl|mvimg|gopr|gh|sam|cimg|kic|wp|vid|p|l|mg|imgp|hpim|dji|burst|snapchat
            |fb\s?img|received|signal|telegram|wechat|mmexport) [\s.-]* \d{3}[\d\s.:~-]* # a camera's or an app's
      ) (?:\s?(?:wa\d+|mp|hdr|portrait|night|cover|bokeh|top|original|edit(?:ed)?|burst\d*))*
      | whatsapp\s(?:image|bild|photo)\b.*
      | (?:screenshot|screen\sshot|bildschirmfoto)\b.*\d.*
      | (?:screenshot|screen\sshot|capture|snapshot|photo\son)[\s.-]*(?:\d.*)?
      | [\d\s.:,()-]+(?:\s?[ap]m)?                                  # dates, times, counters
      | [0-9a-f]{8}(?:[\s-][0-9a-f]{4}){3}[\s-][0-9a-f]{12}           # UUID
      | (?=[a-f]*\d)[0-9a-f]{8,}                                      # hash
      | (?-i:(?=\D*\d)(?=[^A-Z]*[A-Z])(?=[^a-z]*[a-z])[A-Za-z0-9]{16,})  # random token
    )$"""
)
_STORED_TWIN = re.compile(r"~[0-9a-f]{8}$")  # store.py tells name twins apart so
_COUNTERS = re.compile(
    r"""(?ix)(?: \s*[-\s]\s*(?:copy|kopie|copie|copia)(?:\s*\d{1,3})?
               | [-\s]*\(\d{1,5}\)
               | [_-]\s?\d{1,5}
               | \s0\d{1,4} )$"""
)


def caption_from_filename(stem: str) -> str:
    """The words that a person put into a file name; "" when a camera, phone or program named it.

    In this order: the mark of a name twin goes; counters at the end go (`(1)`, `_02`, `-3`, ` 007`,
    ` - Copy`); `_` is a space, and so is `-` in a name of at least three words that has no other space (the older
    notebooks wrote them so); machine names yield "" (`IMG_1234`, `DSC00012`, `PXL_20240131_...`,
    `WhatsApp Image ...`, screenshots, dates, hashes). Digits inside a word stay: `mafk4`.

    >>> caption_from_filename("phtmejhn (1)"), caption_from_filename("mafk4 smiling")
    ('phtmejhn', 'mafk4 smiling')
    >>> caption_from_filename("a-man-driving-a-car-(2)"), caption_from_filename("IMG_1234")
    ('a man driving a car', '')
    """
    words = one_line(_STORED_TWIN.sub("", unicodedata.normalize("NFC", stem)))
    if _is_machine_name(words):
        return ""
    while (shorter := _COUNTERS.sub("", words).rstrip()) != words:
        words = shorter
    if _is_machine_name(words):
        return ""
    words = words.replace("_", " ")
    if " " not in words.strip() and words.count("-") >= 2:
        words = words.replace("-", " ")
    return " ".join(words.split()).strip(" -")


def _is_machine_name(text: str) -> bool:
    plain = " ".join(text.replace("_", " ").split())
    return not plain or bool(_MACHINE_NAMES.match(plain))
