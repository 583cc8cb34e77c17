"""The commands on exports: export, exports, predict and serve."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kresnet.cli.options import Exports, Json, NoPhotos, Tta, read_jobs
from kresnet.cli.output import import_tensorflow_quietly, print_json, reporting
from kresnet.errors import ConfigError, DataError, ResourceError


class Precision(StrEnum):
    """Choices of --precision."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


def export(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    formats: Annotated[
        str,
        typer.Option(help="saved_model, onnx, openvino, litert, keras with commas, or all."),
    ] = "all",
    int8: Annotated[
        bool, typer.Option("--int8", help="Make 8-bit ONNX and LiteRT files too.")
    ] = False,
    precision: Annotated[
        Precision,
        typer.Option(
            help="What the SavedModel computes in. bfloat16 is for processors with AMX, and moves "
            "probabilities by about .01; int8, for those with VNNI or AMX, by more, and is fastest."
        ),
    ] = Precision.float32,
    max_accuracy_loss: Annotated[
        float,
        typer.Option(
            help="Points of validation accuracy that 8 bits, or bfloat16, may cost, or one image "
            "where that is more; 0 is none."
        ),
    ] = 0.5,
    exports: Annotated[
        Path | None, typer.Option(help="Folder of the exports; else where the run's own is.")
    ] = None,
    no_photos: NoPhotos = False,
    as_json: Json = False,
) -> None:
    """Export a finished run again, as a new version with more formats."""
    with reporting() as console:
        from kresnet.export.versions import Version
        from kresnet.workflow import export_run

        exported = export_run(
            run,
            formats=[name.strip() for name in formats.split(",") if name.strip()],
            int8=int8,
            precision=precision.value,
            max_accuracy_loss=max_accuracy_loss,
            exports=exports,
            keep_photos=False if no_photos else None,
            console=console,
        )
        version = Version(exported.path, exported.contract)
    if as_json:
        print_json(version.as_dict() | {"left_out": exported.remarks})
    else:
        typer.echo(f"{version.path}\n\n{version.table()}")


def list_exports(
    name: Annotated[str | None, typer.Argument(help="One export; else all.")] = None,
    version: Annotated[
        int | None, typer.Argument(help="With --rollback: the version to go back to.")
    ] = None,
    rollback: Annotated[
        bool,
        typer.Option(
            "--rollback",
            help="Publish an older version again as the newest, which servers follow: VERSION, or "
            "the one before the newest.",
        ),
    ] = False,
    exports: Exports = Path("saved_models"),
    as_json: Json = False,
) -> None:
    """List the exports with what was checked of each, or go back to an older version."""
    from kresnet.export.versions import list_versions, roll_back

    if version is not None and not rollback:
        raise ConfigError(
            f"A VERSION is for going back to. Received: {version} without --rollback. Add it."
        )
    if rollback and name is None:
        raise ConfigError("`--rollback` needs the NAME of an export. Received: none.")
    versions = (
        [roll_back(exports, name, version)] if rollback and name else list_versions(exports, name)
    )
    if as_json:
        print_json([v.as_dict() for v in versions])
        return
    for found in versions:
        typer.echo(f"{found}\n{found.table()}\n")
    if not versions:
        typer.echo(f"kresnet: there is no export in {exports}.", err=True)


def predict(
    model: Annotated[Path, typer.Argument(help="An export: NAME or NAME/VERSION.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images, or folders of images.")
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(help="tensorflow, onnxruntime, openvino, or auto: the first to be ready."),
    ] = "auto",
    tta: Tta = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="Any number of images: a folder, a manifest, shards, or tfds:NAME; no labels are "
            "needed. Goes with --output, and the same command goes on where it was stopped.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --input: the .parquet file to make, a row an image.")
    ] = None,
    top: Annotated[
        int, typer.Option(help="With --input: classes a row, best first; 0 is all.")
    ] = 5,
    jobs: Annotated[
        str,
        typer.Option(
            help="With --input: processes that answer; auto is one, and with --ray as many as "
            "there is room for."
        ),
    ] = "auto",
    ray: Annotated[
        str | None,
        typer.Option(help="With --input: address of a Ray cluster, as auto; local starts one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print label and score of images, from the export alone; or write a table of any number."""
    if source is None and output is None:
        if (top, jobs, ray) != (5, "auto", None):
            raise ConfigError(
                "`--top`, `--jobs` and `--ray` go with `--input`. Received: "
                f"top={top}, jobs={jobs}, ray={ray!r} without it. Leave them out."
            )
        _print_answers(model, images or [], runtime, tta, as_json)
        return
    if source is None or output is None or images:
        raise ConfigError(
            "`--input` and `--output` go together, and with no other images. Received: "
            f"input={source!r}, output={output and str(output)!r}, {len(images or [])} images."
        )
    with reporting(tensorflow=False) as console:
        from kresnet.batch.predict import predict as predict_all

        summary = predict_all(
            model,
            source,
            output,
            jobs_at_once=read_jobs(jobs),
            ray=ray,
            top=top,
            mirror=tta,
            runtime=runtime,
            console=console,
        )
    if as_json:
        print_json(summary.as_dict())
    else:
        typer.echo(str(summary))


def _print_answers(model: Path, images: list[Path], runtime: str, tta: bool, as_json: bool) -> None:
    if not images:
        raise ConfigError("There must be an image. Received: none. Name some, or give --input.")
    with reporting(tensorflow=False) as console:
        from kresnet.export.versions import latest_version
        from kresnet.serve.quick import open_export

        paths = list(_image_files(images))
        console.status("loading the export")
        engine = open_export(
            latest_version(model), runtime, before_tensorflow=import_tensorflow_quietly
        )
        if tta:
            engine.check_mirrors()
        answers = engine.answer_files(
            paths,
            mirror=tta,
            progress=lambda done: console.status(f"{done} / {len(paths)} images"),
        )
    good = [(path, a) for path, a in zip(paths, answers, strict=True) if a is not None]
    bad = [path for path, a in zip(paths, answers, strict=True) if a is None]
    if as_json:
        print_json(
            [
                {
                    "path": str(path),
                    "label": a.label,
                    "score": a.score,
                    "scores": a.scores,
                    "abstain": a.abstain,
                }
                for path, a in good
            ]
        )
    else:
        for path, answer in good:
            unsure = "\tunsure" if answer.abstain else ""
            typer.echo(f"{path}\t{answer.label}\t{answer.score:.4f}{unsure}")
    if bad:
        raise DataError(
            f"An image must be a readable JPEG, PNG, BMP, GIF or WebP. "
            f"Received: {', '.join(map(str, bad[:3]))}{' ...' if len(bad) > 3 else ''} "
            f"({len(bad)} of {len(paths)} unreadable). The others were answered."
        )


def serve(
    model: Annotated[str, typer.Argument(help="An export: its name, or the path of its folder.")],
    exports: Exports = Path("saved_models"),
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of HTTP; 0 takes a free one.")] = 8501,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC; -1 serves none.")] = 8500,
    runtime: Annotated[
        str,
        typer.Option(help="tensorflow, onnxruntime, openvino, or auto: the fastest that agrees."),
    ] = "auto",
    tolerance: Annotated[
        float, typer.Option(help="Difference of a probability that counts as agreement.")
    ] = 1e-3,
    max_batch: Annotated[int, typer.Option(help="Most images computed together.")] = 32,
    batch_timeout_ms: Annotated[
        float, typer.Option(help="How long an image waits for others, in milliseconds.")
    ] = 2.0,
    max_body_mb: Annotated[float, typer.Option(help="Longest body of a request.")] = 32,
    max_pixels: Annotated[
        int, typer.Option(help="Images of more pixels are not decoded.")
    ] = 50_000_000,
    max_concurrency: Annotated[
        int, typer.Option(help="Requests under way; more are told to come back.")
    ] = 256,
    timeout_s: Annotated[float, typer.Option(help="Longest time for a request.")] = 30,
    drain_s: Annotated[
        float, typer.Option(help="Longest time that accepted requests get after SIGTERM.")
    ] = 30,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token that clients must send.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Bind other than loopback without a token.")
    ] = False,
    poll_s: Annotated[float, typer.Option(help="How often new versions are looked for.")] = 1,
    keep: Annotated[int, typer.Option(help="How many of the newest versions are served.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log no requests.")] = False,
    print_config: Annotated[
        Path | None,
        typer.Option(
            help="Serve nothing: write to this folder, or to - for standard output, what "
            "TensorFlow Serving, Docker, Kubernetes and KServe need to serve the export."
        ),
    ] = None,
) -> None:
    """Serve an export over HTTP and gRPC, with TensorFlow Serving's and KServe's protocols."""
    from kresnet.serve.settings import Settings, find_export, read_token

    home = find_export(model, exports)
    if print_config is not None:
        from kresnet.serve.kit import write_kit

        for path in write_kit(home, print_config, max_batch=max_batch):
            typer.echo(path)
        return
    settings = Settings(
        host=host,
        port=port,
        grpc_port=grpc_port,
        runtime=runtime,
        tolerance=tolerance,
        max_batch=max_batch,
        batch_timeout_ms=batch_timeout_ms,
        max_body_bytes=int(max_body_mb * 2**20),
        max_pixels=max_pixels,
        max_concurrency=max_concurrency,
        timeout_s=timeout_s,
        drain_s=drain_s,
        poll_s=poll_s,
        keep=keep,
        token=read_token(token_file) if token_file else None,
        insecure=insecure,
        log_requests=not quiet,
    )
    out = sys.stdout
    with reporting():
        try:
            from kresnet.serve.server import serve as run
        except ImportError as error:
            raise ResourceError(
                "The server needs packages that are not installed. "
                f"Received: {error.name!r} missing. Install them: pip install 'kresnet[serve]'"
            ) from None
        run(home, settings, lambda line: print(line, file=out, flush=True))


_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}


def _image_files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
            if not found:
                raise DataError(f"A folder must hold images. Received: {str(path)!r}, with none.")
            yield from found
        else:
            yield path
