"""`lspread fit|validate|test|predict`: YAML and options to typed objects (LightningCLI), one folder per run."""

import contextlib
import shlex
import signal
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerStatus

from lspread.cli.parser import RunParser
from lspread.cli.progress import choose_progress, quiet_lightning
from lspread.cli.summary import print_summary
from lspread.cli.trainer import RunTrainer
from lspread.cli.warm_up import warm_up_folder, warm_up_settings
from lspread.data import FewLabelData
from lspread.errors import ConfigError, DataError, LspreadError
from lspread.lit import FewLabelClassifier
from lspread.lit.graph_head import MAX_ROWS
from lspread.lit.random_state import RandomState
from lspread.lit.run_folder import CONFIG_FILE, LAST_CHECKPOINT, RunFolder, write_predictions
from lspread.lit.run_logger import RunLogger
from lspread.lit.warm_up import WarmUpCache, hash_warm_up
from lspread.report import write_report

__all__ = ["ALLOWED_IMPORTS", "TrainingCLI", "run"]

ALLOWED_IMPORTS = (
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lspread.data",
    "lspread.graph",
    "lspread.lit",
    "lspread.nn",
    "lspread.solve",
    "torch.nn",
    "torch.optim",
    "torchvision.transforms.v2",
)
"""Where a class named in a config or on the command line may come from; an entry allows everything below it."""


def run(command: str, argv: list[str]) -> int:
    """Run one of fit, validate, test and predict.

    Args:
        command: The subcommand.
        argv: Its arguments. A run folder as the first one stands for its settings and its last checkpoint:
            `fit RUN` goes on, `test RUN` tests.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.
    """
    # Parsing imports whatever class a value names, and a class may do anything when it is made: a config must not be
    # able to name os.system. The most specific entry decides, and the place where an object is defined counts too.
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=list(ALLOWED_IMPORTS),
        config_read_mode_fsspec_enabled=False,
    )
    quiet_lightning()
    return TrainingCLI(command, _open_run(argv)).exit_code


def _open_run(argv: list[str]) -> list[str]:
    if not argv or argv[0].startswith("-"):
        return argv
    folder = Path(argv[0])
    config, checkpoint = folder / CONFIG_FILE, folder / LAST_CHECKPOINT
    if not config.is_file() or not checkpoint.is_file():
        raise ConfigError(
            f"Expected options or a run folder with {CONFIG_FILE} and {LAST_CHECKPOINT}; got {argv[0]!r}. "
            "A settings file is given as --config FILE."
        )
    return ["--config", str(config), "--ckpt_path", str(checkpoint), "--run_dir", str(folder), *argv[1:]]


class SaveRunConfig(SaveConfigCallback):
    """Saves the resolved settings when training starts; testing a run must not change its folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml, without where this run goes on from: another run of these settings starts anew."""
        if stage == "fit":
            self.config = self.config.clone()
            self.config.ckpt_path = None
            super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """LightningCLI with one model class, any `FewLabelData`, and one folder per run."""

    datamodule: FewLabelData
    trainer: Trainer

    def __init__(self, command: str, argv: list[str]) -> None:
        self.command = command
        self.command_line = shlex.join(["lspread", command, *argv])
        self.exit_code = 0
        self.run_dir = Path()
        super().__init__(
            FewLabelClassifier,
            FewLabelData,
            subclass_mode_data=True,
            trainer_class=RunTrainer,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=RunParser,
            parser_kwargs={"prog": "lspread"},
            args=[command, *argv],
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add lspread's own options and what the model takes from the data."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of this run; default: runs/<date>-<time>-<data name>.",
        )
        parser.add_argument(
            "--graph_head_rows",
            type=int,
            default=MAX_ROWS,
            help="Training images whose embeddings graph_head.safetensors keeps at most, drawn at random from more; "
            "0: none. Fewer make the file smaller and the graph head less accurate.",
        )
        parser.add_argument(
            "--warmup_cache",
            type=str | None,
            default="auto",
            help="Folder of finished warm-ups, which other runs on the same images start from; auto: one of the "
            "user's cache; null: train it anew and do not keep it.",
        )
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_channels", "model.backbone.init_args.in_channels", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; LightningCLI's own version warns when it gets arguments from code, as it always does here."""
        parser.prog = f"lspread {self.command}"  # errors name the command; those of its own options do so already
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # LightningCLI would merge hyperparameters saved in the checkpoint into the config. Here config.yaml of the run
        # says everything, and what the user changes on the command line must stay changed.
        options = self.config[self.command]
        checkpoint = options.get("ckpt_path")
        if checkpoint is None and self.command != "fit":
            raise ConfigError(
                f"lspread {self.command} needs a trained run: lspread {self.command} RUN, "
                "or --config FILE --ckpt_path RUN/checkpoints/last.ckpt."
            )
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise ConfigError(f"--ckpt_path needs a checkpoint file; {checkpoint} does not exist.")

    def instantiate_classes(self) -> None:
        """Make the objects; what one of them objects to is told in its own words."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps what a constructor raises into "does not validate against any of the Union subtypes".
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, LspreadError):
                cause = cause.__cause__ or cause.__context__
            if cause is None or cause is error:
                raise
            raise cause from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer around the run's folder."""
        options = self.config[self.command]
        self.run_dir = Path(options.run_dir or self._default_run_dir())
        options.run_dir = str(self.run_dir)
        settings = dict(self.config_init[self.command].trainer)
        is_real = self.command == "fit" and not settings.get("fast_dev_run")
        if is_real:
            self._check_run_dir(options.get("ckpt_path"))
        callbacks, settings["enable_progress_bar"] = choose_progress(settings)
        if self.command == "fit":
            callbacks += [
                RandomState(),
                ModelCheckpoint(
                    dirpath=self.run_dir / Path(LAST_CHECKPOINT).parent,
                    filename=Path(LAST_CHECKPOINT).stem,
                    enable_version_counter=False,
                    save_on_exception=True,
                    save_on_train_epoch_end=True,
                ),
                RunFolder(
                    self.run_dir,
                    command=self.command_line,
                    seed=options.seed_everything,
                    backbone_spec=self._backbone_spec(),
                    graph_head_rows=options.graph_head_rows,
                ),
            ]
        own_logger = RunLogger(self.run_dir) if is_real else False
        given_logger = settings.get("logger")
        if given_logger in (None, True):
            logger: Any = own_logger
        elif given_logger is False or not is_real:
            logger = False
        else:
            others = given_logger if isinstance(given_logger, list) else [given_logger]
            logger = [own_logger, *others]  # the first one's folder is the trainer's log_dir
        if "enable_checkpointing" in settings and self.command != "fit":
            settings["enable_checkpointing"] = False
        self.config_init[self.command].trainer = settings
        return self._instantiate_trainer({**settings, "logger": logger, **kwargs}, callbacks)

    def _backbone_spec(self) -> dict[str, Any]:
        self._dump_config()
        spec: dict[str, Any] = self.config_dump["model"]["backbone"]
        # Linked from the data when objects are made, so the parsed options do not hold it.
        return {**spec, "init_args": {**(spec.get("init_args") or {}), "in_channels": self.datamodule.in_channels}}

    def _default_run_dir(self) -> Path:
        return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{self.datamodule.name}"

    def _check_run_dir(self, checkpoint: str | None) -> None:
        if (self.run_dir / CONFIG_FILE).exists() and checkpoint is None:
            if (self.run_dir / LAST_CHECKPOINT).exists():
                advice = f"Go on with it: lspread fit {self.run_dir}; or choose another folder."
            else:
                advice = "It ended before its first checkpoint: remove the folder, or choose another."
            raise ConfigError(f"--run_dir {self.run_dir} already holds a run. {advice}")

    def before_fit(self) -> None:
        """Go on from the end of a warm-up that an earlier run has trained, or keep this one's for later runs."""
        options, module, trainer = self.config[self.command], self.model, self.trainer
        assert isinstance(module, FewLabelClassifier)
        folder, length = warm_up_folder(options.warmup_cache), module.warmup_epochs
        # Only a warm-up that runs from its start to its end in one sitting is what its settings say.
        is_whole = trainer.max_steps == -1 and (trainer.max_epochs in (None, -1) or trainer.max_epochs >= length)
        is_new = options.get("ckpt_path") is None and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if folder is None or not length or not is_whole or not is_new or not self._is_repeatable():
            return
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self._dump_config()
        settings = warm_up_settings(self.config_dump)
        settings["machine"] = [trainer.strategy.root_device.type, str(trainer.precision)]
        cache = WarmUpCache(folder, hash_warm_up(settings, module, self.datamodule))
        trainer.callbacks.append(cache)  # type: ignore[attr-defined]
        if cache.find() is None:
            print(f"warm-up: will be kept for later runs on these images in {cache.path}")
            return
        print(f"warm-up: {length} epochs taken from {cache.path} (--warmup_cache null trains them anew)")
        cache.copy_metrics(self.run_dir)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunFolder):
                callback.warm_up = str(cache.path)
        self.config_init[self.command].ckpt_path = str(cache.path)

    def before_test(self) -> None:
        """Refuse where nothing was kept for test: Lightning would end without a word."""
        self._require("test")

    def before_validate(self) -> None:
        """Refuse where nothing was kept for validation."""
        self._require("val")

    def _require(self, part: str) -> None:
        self.datamodule.prepare_data()
        self.datamodule.setup("test")
        rows = getattr(self.datamodule.split, part)
        if not self.datamodule.evaluator.has_truth(rows):
            kept = f"kept for {'validation' if part == 'val' else part}"
            lack = f"has a known class among those {kept}" if len(rows) else f"was {kept}"
            raise DataError(
                f"there is nothing to {self.command}: no item of {self.datamodule.name} {lack}. What is known of the "
                f"others is in the run's report; `lspread predict {shlex.quote(str(self.run_dir))}` labels all items."
            )

    def _is_repeatable(self) -> bool:
        """Whether another run of these settings draws the same numbers: seeded, one process."""
        seed = self.config[self.command].seed_everything
        is_seeded = seed is not None and seed is not False  # 0 is a seed
        return is_seeded and self.trainer.world_size == 1 and not self.datamodule.num_workers

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit":
            print(f"run folder: {self.run_dir}")
        try:
            super()._run_subcommand(subcommand)
        except SystemExit:
            # Lightning answers Ctrl-C by calling the callbacks' on_exception and then sys.exit.
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            self.exit_code = 130
            self._print_interrupted()
            _restore_interrupt()

    def _print_interrupted(self) -> None:
        checkpoint = self.run_dir / LAST_CHECKPOINT
        lines = ["", "lspread: stopped by Ctrl-C."]
        if self.command == "fit" and checkpoint.is_file():
            config = self.run_dir / CONFIG_FILE
            lines += [
                f"Everything up to here is in {checkpoint}. To go on:",
                f"  lspread fit --config {shlex.quote(str(config))} --ckpt_path {shlex.quote(str(checkpoint))}",
            ]
        elif self.command == "fit":
            lines += ["No step was finished, so there is nothing to resume."]
        print("\n".join(lines), file=sys.stderr)

    def after_fit(self) -> None:
        """Write the report and say what came out."""
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        write_report(self.run_dir)
        print_summary(self.run_dir)

    def predict(self, model: LightningModule, datamodule: FewLabelData, **kwargs: Any) -> None:
        """Label every item of the data and write the table."""
        kwargs["return_predictions"] = True
        batches: Any = self.trainer.predict(model, datamodule=datamodule, **kwargs)
        path = write_predictions(self.run_dir, datamodule, batches)
        print(f"labels of {len(datamodule.items):,} items: {path}")


def _restore_interrupt() -> None:
    # Lightning leaves Ctrl-C ignored; a program that called main() goes on and wants it back.
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.default_int_handler)
