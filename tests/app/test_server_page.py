import pytest

from sa2va_trl.app.server import Views


def test_a_page_shows_one_view_and_nothing_when_it_is_closed():
    views, first, second = Views(), object(), object()
    assert views.of("page") is None
    token = views.put("page", first)
    assert views.of("page") is first and views.find(token) is first
    other = views.put("other", first)
    assert other != token and len(token) > 20
    newer = views.put("page", second)
    assert views.find(newer) is views.of("page") is second and len(views) == 2
    with pytest.raises(LookupError, match="No page shows"):
        views.find(token)
    views.forget("page")
    views.forget("page")
    assert len(views) == 1 and views.of("page") is None
    with pytest.raises(LookupError):
        views.find(newer)
    assert views.find(other) is first
