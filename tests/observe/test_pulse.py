from __future__ import annotations

from sapwood.observe import Pulse


def test_beats_while_reports_change() -> None:
    pulse = Pulse(limit=30, now=0)
    reports = [object() for _ in range(10)]
    assert all(pulse.beats(report, now=5.0 * at) for at, report in enumerate(reports))


def test_the_same_report_grows_old() -> None:
    pulse = Pulse(limit=30, now=0)
    report = object()
    assert pulse.beats(report, now=10)
    assert pulse.beats(report, now=25)
    assert not pulse.beats(report, now=31)
    assert pulse.beats(object(), now=32)


def test_a_late_look_cannot_tell_a_new_report_from_an_old_one() -> None:
    pulse = Pulse(limit=30, now=0)
    assert not pulse.beats(object(), now=100)
    assert pulse.beats(object(), now=101)


def test_no_report_at_all_is_excused_for_a_while() -> None:
    pulse = Pulse(limit=30, now=0)
    assert pulse.beats(None, now=29)
    assert not pulse.beats(None, now=31)
