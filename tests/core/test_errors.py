"""What an error offers."""

from graphpress.errors import nearest


def test_a_near_name_is_offered_else_the_few_there_are() -> None:
    assert nearest("w8a9", ["w8a8", "fold"]) == "Did you mean 'w8a8'?"
    assert nearest("zzz", ["w8a8", "fold"]) == "Known: fold, w8a8."
    assert nearest("zzz", []) == "Known: none."


def test_many_names_are_not_listed() -> None:
    assert nearest("zzz", [f"name{i}" for i in range(100)]) == "None of the 100 known names is near."
