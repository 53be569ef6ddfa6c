"""Lines that say nothing about the page they stand on, as regular expressions for `data.cleaning.boilerplate`.

Each one has to match a whole line, from its first character to its last, in upper or lower case: a sentence about
cookies or a licence in a comment (which begins with its comment mark) stays. Few and plain on purpose; a config may
name its own instead.
"""

_MENU = (
    r"(?:home|about(?: us)?|contact(?: us)?|log ?in|sign ?(?:in|up)|register|privacy(?: policy)?|site ?map|faq|help"
    r"|search|terms(?: (?:of (?:use|service)|and conditions))?|blog|news|shop|products|services|careers|my account)"
)
_BARS = r"|\u00bb\u203a\u00b7\u2022>"
_BAR = rf"[ \t]*[{_BARS}][ \t]*"
# Begins and ends with a letter or mark: spaces that could belong to the bar as well would cost exponential time.
_ITEM = rf"[^{_BARS}\s](?:[^{_BARS}]{{0,28}}[^{_BARS}\s])?"

PATTERNS = (
    # Cookie notices.
    r"(?:this|our) (?:web ?)?site uses cookies\b.*",
    r"we (?:and our partners )?use cookies\b.*",
    r"by (?:continuing|using|browsing|clicking)\b.{1,100}\bcookies\b.*",
    r"(?:accept|reject|manage|allow)(?: all)? cookies\W?",
    r"(?:cookie|privacy) (?:policy|notice|settings|preferences)\W?",
    # Scripts.
    r"(?:please )?(?:enable|turn on|activate) (?:java ?script|cookies)\b.*",
    r"(?:you need to|you must|please) enable java ?script\b.*",
    r"java ?script (?:is|must be|seems to be|appears to be) (?:currently )?(?:not enabled|enabled|disabled|required)\b"
    r".*",
    r"(?:this (?:site|page|app) requires|your browser does not support) java ?script\b.*",
    # Rights.
    r"(?:copyright|\(c\)|\u00a9).{0,100}\ball rights reserved\b.{0,40}",
    r"all rights reserved\W?",
    # Share and follow buttons.
    r"(?:click to )?(?:share|tweet|pin) (?:this|it|on|via|to|with)\b(?: (?:this|on|via|to|with|by)){0,2}"
    r" ?(?:article|page|post|story|facebook|twitter|x|linkedin|whatsapp|pinterest|reddit|telegram|e-?mail|friends)?"
    r"(?: on \w+)?(?: \(opens in new window\))?",
    r"(?:like|follow) us on \w+(?:(?:,| and|, and) \w+)*\W?",
    r"(?:sign up|subscribe) (?:to|for) (?:our|the) (?:\w+ )?newsletter\b.{0,60}",
    # Navigation.
    r"skip to (?:main )?(?:content|navigation)",
    r"(?:back|return) to top\W?",
    r"(?:\W+ ?)?(?:previous|next) (?:post|article|page|story)(?: ?\W+)?",
    r"(?:read|show|load|view|see) more(?: ?\W+)?|continue reading(?: ?\W+)?",
    rf"{_MENU}(?:{_BAR}{_ITEM}){{0,12}}?{_BAR}{_MENU}(?:{_BAR}{_ITEM}){{0,12}}",
)
