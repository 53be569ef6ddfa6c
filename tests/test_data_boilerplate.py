"""Boilerplate patterns: what goes, and the like of it that stays."""

import pytest

from data.boilerplate import PATTERNS
from data.cleaning import LONGEST_BOILERPLATE, CleaningConfig, drop_boilerplate

GOES = [
    "We use cookies to improve your experience.",
    "This website uses cookies, including third-party ones",
    "By continuing to browse this site you agree to our use of cookies.",
    "Accept all cookies",
    "Cookie Policy",
    "Privacy policy.",
    "Please enable JavaScript to view this page.",
    "You need to enable JavaScript to run this app.",
    "JavaScript is disabled in your browser.",
    "Your browser does not support JavaScript!",
    "Copyright 2024 Example Ltd. All rights reserved.",
    "\u00a9 2019 The Daily News. All Rights Reserved",
    "All rights reserved.",
    "Share this article on Facebook",
    "Share on Twitter (Opens in new window)",
    "Click to share on WhatsApp",
    "Tweet this",
    "Follow us on Facebook, Twitter and Instagram",
    "Subscribe to our newsletter",
    "Skip to main content",
    "Back to top",
    "\u00ab Previous post",
    "Next article \u2192",
    "Read more...",
    "CONTINUE READING \u00bb",
    "Home | About",
    "Home \u203a Products \u203a Contact us",
    "home | recipes | about us | log in",
]
STAYS = [
    "He explained why we use cookies in tins, and she laughed.",
    "The site uses cookies to store the session; see RFC 6265.",
    "If JavaScript is disabled, the form still works.",
    "# Copyright (c) 2001 Someone. All rights reserved.",
    "    Copyright (c) 2001 Someone. All rights reserved.",
    "The authors kept all rights reserved for themselves.",
    "Share the bread with those who have none.",
    "They share this view on the matter, as we have seen.",
    "| Home | Away | Score |",
    "Home | Away | Score",
    "Name | Value",
    "Home",
    "About us, he said nothing.",
    "Read more books.",
    "The next article describes the loader.",
    "",
    "}",
    "We use cookies " + "x" * 200,
]


@pytest.mark.parametrize("line", GOES)
def test_boilerplate_goes(line):
    assert drop_boilerplate(["before", line, line + " \t", "after"], PATTERNS) == ["before", "after"]


@pytest.mark.parametrize("line", STAYS)
def test_what_only_looks_like_it_stays(line):
    assert drop_boilerplate([line], PATTERNS) == [line]


def test_no_pattern_takes_long_for_a_line_that_nearly_matches():
    for line in ("home" + " |     a" * 20, "share this " + "on " * 60, "!" * 199, "by using " + "cookie " * 27):
        assert len(line) <= LONGEST_BOILERPLATE
        assert drop_boilerplate([line], PATTERNS) == [line]


def test_patterns_are_ones_own_and_only_whole_lines_go():
    config = CleaningConfig(boilerplate=(r"page \d+|folio \d+",))
    assert config.clean("Page 7\nsee page 7\nFOLIO 3\nWe use cookies")[0] == "see page 7\nWe use cookies"
    assert CleaningConfig(boilerplate=(r"\s*page \d",)).clean("page 1\n page 2\n\tpage 3")[0] == " page 2\n\tpage 3"
    assert CleaningConfig(boilerplate=()).clean("Home | About") == ("Home | About", {})
