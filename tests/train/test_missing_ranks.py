"""What is said of ranks that are missing."""

from recemb.train.missing_ranks import WAITED, Sign, describe, is_explained

WAITING = Sign(beats=9, place="process 10 on a", step="17", end=WAITED)
SILENT = Sign(beats=9, place="process 11 on b", step="16")
FAILED = Sign(beats=9, place="process 12 on b", step="16", end="ValueError: no such column")


def said(*signs: Sign, dead: frozenset[int] = frozenset()) -> str:
    return describe(dict(enumerate(signs)), dead=dead, timeout_seconds=60)


def test_a_rank_that_lives_and_does_not_answer_is_named_with_its_step_and_the_timeout() -> None:
    text = said(WAITING, SILENT, WAITING)
    assert text.startswith(
        "rank 1 (process 11 on b) lives, but did not answer within 60 seconds (timeout_seconds). "
        "Last heard of: ranks 0, 2 after update 17, rank 1 after update 16. "
    )
    assert text.endswith("and a higher timeout_seconds if it was only slow")


def test_a_rank_without_a_sign_of_life_is_named_and_no_other() -> None:
    text = said(WAITING, SILENT, SILENT, dead=frozenset({2}))
    assert text.startswith("rank 2 (process 11 on b) gives no sign of life. Last heard of: ")
    assert "timeout" not in text


def test_a_rank_that_failed_is_named_with_its_error_and_no_other() -> None:
    text = said(WAITING, SILENT, FAILED, dead=frozenset({1}))
    assert text.startswith("rank 2 (process 12 on b) stopped: ValueError: no such column. ")
    assert "no sign of life" not in text


def test_several_ranks_are_all_named() -> None:
    text = said(WAITING, SILENT, WAITING, SILENT)
    assert text.count("did not answer") == 2


def test_a_rank_that_never_came_is_called_so() -> None:
    text = said(WAITING, Sign(beats=None), dead=frozenset({1}))
    assert text.startswith("rank 1 (never seen) gives no sign of life.")
    assert "rank 1 before an update" in text


def test_where_all_waited_the_connection_is_to_blame() -> None:
    assert said(WAITING, WAITING).startswith("all ranks live and waited for each other")


def test_many_ranks_at_one_step_are_a_range() -> None:
    text = said(*[WAITING] * 6, SILENT, WAITING)
    assert "ranks 0-5, 7 after update 17, rank 6 after update 16" in text


def test_one_failure_explains_and_so_do_all_ends() -> None:
    assert is_explained({0: WAITING, 1: SILENT, 2: FAILED})
    assert is_explained({0: WAITING, 1: WAITING})
    assert not is_explained({0: WAITING, 1: SILENT})
