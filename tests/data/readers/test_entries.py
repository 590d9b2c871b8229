"""How a source becomes rows: what can be asked."""

import pytest

from sa2va_trl.data.readers.entries import Reading


@pytest.mark.parametrize("template", ["the {phrase} of {view}", "{phrase} {", "{0} {phrase}"])
def test_a_template_holds_nothing_but_the_phrase(template):
    with pytest.raises(ValueError, match="may hold {phrase} alone"):
        Reading(templates=(template,))
