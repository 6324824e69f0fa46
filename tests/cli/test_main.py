import warnings

import pytest

from lspread import __version__
from lspread.cli import main as main_module
from lspread.cli.config import bundled_configs
from lspread.cli.main import main
from lspread.errors import DataError, SolveError


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_lists_every_command(argument, capsys):
    assert main([argument]) == 0
    printed = capsys.readouterr().out
    for command in ("demo", "fit", "validate", "test", "predict", "report", "config"):
        assert f"\n  {command} " in printed
    assert "lspread fit --config" in printed


def test_no_command_is_wrong_usage(capsys):
    assert main([]) == 2
    assert "usage: lspread" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lspread {__version__}\n"


def test_unknown_command_names_the_nearest(capsys):
    assert main(["tets"]) == 2
    assert "unknown command 'tets'. Did you mean 'test'?" in capsys.readouterr().err
    assert main(["xyzzy"]) == 2
    assert "Commands: demo, fit" in capsys.readouterr().err


def raise_error(error):
    def dispatch(arguments):
        raise error

    return dispatch


@pytest.mark.parametrize("error", [DataError("no such folder"), SolveError("did not converge")])
def test_own_errors_are_one_message(error, monkeypatch, capsys):
    monkeypatch.delenv("LSPREAD_TRACEBACK", raising=False)
    monkeypatch.setattr(main_module, "_dispatch", raise_error(error))
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == f"lspread: error: {error}\n"


def test_traceback_on_request(monkeypatch, capsys):
    monkeypatch.setattr(main_module, "_dispatch", raise_error(DataError("no such folder")))
    monkeypatch.setenv("LSPREAD_TRACEBACK", "0")
    assert main(["fit", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("LSPREAD_TRACEBACK", "1")
    assert main(["fit"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--traceback"]])
def test_warnings_are_said_without_the_code_behind_them(options, monkeypatch):
    said = []
    monkeypatch.setattr(
        main_module, "_dispatch", lambda _: said.append(warnings.formatwarning("m", UserWarning, "a", 3))
    )
    main([*options, "fit"])
    assert (said == ["warning: m\n"]) == (not options)
    assert warnings.formatwarning("m", UserWarning, "a", 3).startswith("a:3: UserWarning: m")


def test_other_errors_are_bugs_and_stay_visible(monkeypatch):
    monkeypatch.setattr(main_module, "_dispatch", raise_error(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["fit"])


def test_ctrl_c_is_130(monkeypatch, capsys):
    monkeypatch.setattr(main_module, "_dispatch", raise_error(KeyboardInterrupt()))
    assert main(["fit"]) == 130
    assert "Ctrl-C" in capsys.readouterr().err


def test_config_lists_and_prints(capsys):
    assert main(["config"]) == 0
    listed = capsys.readouterr().out
    assert {line.split()[0] for line in listed.splitlines()} == set(bundled_configs())
    assert set(bundled_configs()) >= {"digits", "fashion_mnist", "image_folder", "methods/supervised"}
    assert main(["config", "image_folder"]) == 0
    assert capsys.readouterr().out == bundled_configs()["image_folder"].read_text(encoding="utf-8")
    assert main(["config", "nonsense"]) == 1
    assert "No settings file 'nonsense' comes with lspread; there are: cifar10" in capsys.readouterr().err


def test_report_needs_a_finished_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert f"{tmp_path} has no results.json" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "required: RUN" in capsys.readouterr().err


def test_short_help_points_to_the_whole(capsys):
    assert main(["fit", "--help"]) == 0
    assert "--help-all" in capsys.readouterr().out
    assert main(["fit", "--help-all"]) == 0
    assert "--model.pseudo_weight" in capsys.readouterr().out


def test_files_that_cannot_be_written_are_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LSPREAD_TRACEBACK", raising=False)
    taken = tmp_path / "taken"
    taken.write_text("")

    def write(_):
        (taken / "more").mkdir()

    monkeypatch.setattr(main_module, "_dispatch", write)
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == f"lspread: error: {taken / 'more'}: Not a directory.\n"
    monkeypatch.setattr(main_module, "_dispatch", raise_error(OSError(28, "No space left on device")))
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == "lspread: error: No space left on device.\n"
    assert main(["fit", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err
