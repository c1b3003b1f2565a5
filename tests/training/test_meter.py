"""Progress of a run: lines, a bar on a terminal, and one in a notebook."""

import pytest
from rich.progress import Progress as Bar

import jaxrl
from tests.training.test_sweep import toy


def test_a_run_reports_in_lines_where_there_is_no_terminal(capsys):
    jaxrl.train(toy(iterations=4), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line.split()[0] for line in lines] == ["25%", "50%", "75%", "100%"]
    assert "iteration 4/4" in lines[-1]
    jaxrl.train(toy(iterations=4))
    assert capsys.readouterr().err == ""


def test_a_sweep_adds_up_its_members_and_says_what_it_announces(capsys):
    jaxrl.sweep(toy(iterations=4), seeds=2, batch_size=1, progress=True)
    announced, *lines = capsys.readouterr().err.splitlines()
    assert announced == "program 1 of 1: 2 members"
    assert [line.split()[0] for line in lines][-1] == "100%"
    assert len(lines) == 8
    said = []
    jaxrl.sweep(toy(iterations=4), batch_size=1, progress=True, announce=said.append)
    assert said == ["program 1 of 1: 1 member"]
    assert "program" not in capsys.readouterr().err


def test_a_terminal_has_a_bar_that_ends_with_the_run(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    jaxrl.train(toy(iterations=4), progress=True)
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "100%" in shown
    assert shown.rstrip(" \n").endswith("\x1b[?25h")  # the cursor is back


def test_a_bar_that_a_failing_callback_ends(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")

    def fail(progress):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        jaxrl.train(toy(iterations=4), progress=True, callbacks=[fail])
    assert "\x1b[?25h" in capsys.readouterr().err


def test_a_notebook_has_a_bar_that_is_updated_in_place(monkeypatch):
    shown = []

    class Handle:
        def update(self, bar):
            shown.append(bar.tasks[0].completed)

    def display(bar, display_id):
        assert isinstance(bar, Bar)
        assert display_id is True
        assert not shown
        return Handle()

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    jaxrl.train(toy(iterations=4), progress=True)
    assert shown == [8, 16, 24, 32]
