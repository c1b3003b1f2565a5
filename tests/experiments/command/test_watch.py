"""`jaxrl watch` on a run that is under way."""

import json

from experiments.command.cli import main


def test_watch_shows_a_run_that_goes_on(tmp_path, capsys):
    config = {"agent": "ppo", "env": "CartPole-v1", "env_options": {}, "env_params": {}}
    config |= {"hyperparameters": {"total_steps": 10}, "settings": [{}], "seeds": [0], "data": None}
    config |= {"evaluations": 0, "episodes": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["watch", str(tmp_path)]) == 0
    assert "nothing to show yet" in capsys.readouterr().out
    lines = [
        {"batch": 0, "members": 2, "iteration": i, "env_steps": 2 * i, "episode_return": i / 2}
        for i in range(1, 6)
    ]
    text = "".join(json.dumps(line | {"seconds": 3.5}) + "\n" for line in lines)
    (tmp_path / "log.jsonl").write_text(text + '{"batch": 0, "mem')  # the last is being written
    assert main(["watch", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "running, batch 0, iteration 5, 10 environment steps in 4 s, return 2.50" in shown
    assert (tmp_path / "curve.png").exists()
    assert main(["watch", str(tmp_path / "no")]) == 2
