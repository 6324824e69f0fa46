import pytest

from lspread.cli.config import bundled_config
from lspread.cli.main import _COMMANDS, main
from lspread.cli.parser import shorten_message

DIGITS = str(bundled_config("digits"))


@pytest.mark.parametrize(
    ("settings", "place", "name"),
    [
        ("data:\n  class_path: os.system\n  init_args: {{command: touch {file}}}", "data", "os.system"),
        (
            "model:\n  backbone:\n    class_path: subprocess.Popen\n    init_args: {{args: [touch, '{file}']}}",
            "model.backbone",
            "subprocess.Popen",
        ),
        (
            "trainer:\n  callbacks:\n  - class_path: subprocess.run\n    init_args: {{args: [touch, '{file}']}}",
            "trainer.callbacks",
            "subprocess.run",
        ),
        # The same functions by a detour: modules that are allowed import others that are not.
        ("model:\n  strong: torch.nn.modules.module.warnings.warn", "model.strong", "warnings.warn"),
        ("model:\n  strong: lspread.data.idx.gzip.open", "model.strong", "gzip.open"),
        ("model:\n  strong: lspread.cli.main.main", "model.strong", "lspread.cli.main.main"),
        ("model:\n  strong: torch.hub.load", "model.strong", "torch.hub.load"),
        ("model:\n  strong: builtins.eval", "model.strong", "builtins.eval"),
    ],
)
def test_settings_cannot_name_what_could_do_harm(settings, place, name, tmp_path, capsys):
    file = tmp_path / "was here"
    evil = tmp_path / "evil.yaml"
    evil.write_text(settings.format(file=file) + "\n")
    assert main(["fit", "--config", DIGITS, "--config", str(evil), "--run_dir", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert f'Parser key "{place}"' in printed
    assert name in printed
    assert "must not be named here" in printed
    assert not file.exists()
    assert not (tmp_path / "run").exists()


def test_denied_names_are_explained(tmp_path, capsys):
    assert main(["fit", "--config", DIGITS, "--model.backbone", "subprocess.Popen"]) == 2
    printed = capsys.readouterr().err
    assert "'subprocess.Popen' must not be named here: settings can only name classes of lspread" in printed
    assert len(printed.splitlines()) < 8


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (
            "data:\n  class_path: lspread.data.Digits\n  init_args: {labels_per_class: 3}",
            "unknown setting 'labels_per_class'",
        ),
        ("model:\n  alpha: 0.9", "alpha"),
        ("trainer:\n  epochs: 3", "epochs"),
        ("data_dir: x", "data_dir"),
        (
            "trainer:\n  callbacks:\n  - class_path: lspread.lit.RefreshPseudoLabels\n    init_args: {neighbors: 3}",
            "unknown setting 'neighbors'",
        ),
    ],
)
def test_unknown_settings_are_refused_by_name(settings, name, tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(settings + "\n")
    assert main(["fit", "--config", DIGITS, "--config", str(wrong)]) == 2
    assert name in capsys.readouterr().err


def test_unknown_options_are_refused_by_name(capsys):
    assert main(["fit", "--config", DIGITS, "--model.alpah", "3"]) == 2
    assert capsys.readouterr().err == (
        "lspread fit: error: unrecognized arguments: --model.alpah 3\n"
        "All settings: lspread fit --help-all. A settings file is given as --config FILE.\n"
    )


@pytest.mark.parametrize("option", ["--trainer.max_epoch", "--seed", "--model.temp", "--conf"])
def test_the_beginning_of_an_option_is_no_option(option, capsys):
    assert main(["fit", "--config", DIGITS, option, "3", "--print_config"]) == 2
    assert f"unrecognized arguments: {option} 3" in capsys.readouterr().err


@pytest.mark.parametrize("command", [name for name in _COMMANDS if name != "demo"])  # demo hands options on to fit
def test_no_command_takes_the_beginning_of_an_option(command, capsys):
    assert main([command, "--hel"]) == 2
    assert "usage: lspread" not in capsys.readouterr().out


def test_a_bare_fit_says_what_it_needs_and_where_to_read_on(capsys):
    assert main(["fit"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("lspread fit: error: the following arguments are required")
    assert printed.endswith("All settings: lspread fit --help-all. A settings file is given as --config FILE.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.num_labels_per_class", "0"], "num_labels_per_class must be at least 1, but is 0"),
        (["--model.lr", "-1"], "lr and temperature must be greater than 0; got lr=-1.0"),
        (["--data.num_labels_per_class", "500"], "Drawing 500 labels per class needs as many items in each class"),
    ],
)
def test_what_an_object_refuses_is_told_in_its_own_words(arguments, message, tmp_path, capsys):
    assert main(["fit", "--config", DIGITS, "--run_dir", str(tmp_path / "run"), *arguments]) == 1
    printed = capsys.readouterr().err
    assert "lspread: error: " in printed
    assert message in printed
    assert "Traceback" not in printed


def test_shorten_message_keeps_what_it_does_not_know():
    message = 'Parser key "x":\n  Does not validate against any of the Union subtypes\n  Errors:\n    - Expected a dog'
    assert shorten_message(message) == 'Parser key "x":\n    - Expected a dog'
