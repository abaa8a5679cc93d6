from __future__ import annotations

from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.data.convert.run import main
from vidsim.data.synthetic import GeneratorConfig, generate


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "usage: vidsim convert {aiac,table}" in capsys.readouterr().out
    assert main([]) == 2
    assert "usage: vidsim convert" in capsys.readouterr().err
    for name in ("aiac", "table"):
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert f"usage: vidsim convert {name}" in capsys.readouterr().out


def test_unknown_converter() -> None:
    with pytest.raises(UserError, match="no converter 'csv'"):
        main(["csv"])


def test_arguments_go_to_the_converter(tmp_path: Path) -> None:
    config = GeneratorConfig(num_videos=2, num_pairs=0, num_test_pairs=0, num_tags=20, frame_dim=2)
    generate(tmp_path / "source", config)
    assert main(["aiac", str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--frame_dim", "2"]) == 0
    assert (tmp_path / "out" / "pointwise" / "manifest.json").exists()
