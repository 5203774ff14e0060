"""train.py and test.py from option files, as a user runs them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from workshop import Workshop, error_lines, load, make_pairs, test_options


def test_full_precision_as_programs(workshop: Workshop) -> None:
    code, errors = workshop.run("train.py", workshop.fp, "train:total_iter=5")
    assert code == 0, errors
    assert not error_lines(errors)
    folder = workshop.experiment("fp")
    assert {path.name for path in (folder / "models").iterdir()} == {
        "net_g_2.pth", "net_g_4.pth", "net_g_5.pth", "net_g_latest.pth", "net_g_best.pth"}
    assert {path.name for path in (folder / "training_states").iterdir()} == {"2.state", "4.state", "5.state"}
    assert {"train_fp.log", "train_fp.yml"} <= {path.name for path in folder.iterdir()}
    log = (folder / "train_fp.log").read_text()
    assert "iteration 5/5" in log and "ETA 0:00:00" in log and "validation val, iteration 3: psnr" in log
    assert "validation val, iteration 5" in log  # the end is always validated

    tested = test_options(workshop.fp, "experiments/fp/models/net_g_latest.pth")
    tested["path"]["param_key_g"] = "params_ema"
    code, errors = workshop.run("test.py", tested, "val:save_img=true")
    assert code == 0, errors
    assert not error_lines(errors)
    results = workshop.folder / "results" / "test_fp"
    summary = json.loads((results / "metrics.json").read_text())["val"]
    assert summary["images"] == 3 and set(summary["mean"]) == {"psnr", "ssim"}
    with open(results / "val.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["im0", "im1", "im2", "AVERAGE"]
    assert float(rows[-1]["psnr"]) == pytest.approx(summary["mean"]["psnr"], abs=1e-5)
    assert {path.name for path in (results / "visualization" / "val").iterdir()} == {
        f"im{number}_test_fp.png" for number in range(3)}
    # what was measured at the end of the training is what the test measures
    assert workshop.state("fp", 5)["best"]["metric"] == "psnr"
    assert f"iteration 5: psnr {summary['mean']['psnr']:.4f}" in log


@pytest.mark.parametrize("mode", ["released", "paper", "corrected"])
def test_quantized(workshop: Workshop, mode: str) -> None:
    workshop.dqc["mode"] = mode
    assert workshop.train(workshop.dqc, "train:optim_bound:lr=1e-4") == 0
    assert workshop.experiment("dqc").joinpath("models", "net_Q_4.pth").is_file()
    content = workshop.network("dqc", "Q")
    assert content["metadata"]["mode"] == mode and content["metadata"]["calibration"]
    bits = {int(value) for name, value in content["params"].items() if name.endswith("n_bit")}
    assert bits <= {3}
    # testing needs neither calibration file, training data nor teacher
    for name in ("weights", "data/train", "keydata"):
        (workshop.folder / name).rename(workshop.folder / f"{name}_away")
    tested = test_options(workshop.dqc, "experiments/dqc/models/net_Q_4.pth")
    tested |= {"cali_data": "keydata/does_not_exist.pth", "pathFP": {"pretrain_network_FP": "nowhere.pth"}}
    del tested["bit"]
    assert workshop.test(tested) == 0
    summary = json.loads((workshop.folder / "results/test_dqc/metrics.json").read_text())
    log = (workshop.experiment("dqc") / "train_dqc.log").read_text()
    assert f"iteration 4: psnr {summary['val']['mean']['psnr']:.4f}" in log


def test_second_run_archives_the_first(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    first = (workshop.experiment("fp") / "models" / "net_g_2.pth").read_bytes()
    assert workshop.train(workshop.fp, "train:total_iter=1") == 0
    archived = list((workshop.folder / "experiments").glob("fp_archived_*"))
    assert len(archived) == 1
    assert (archived[0] / "models" / "net_g_2.pth").read_bytes() == first
    assert not (workshop.experiment("fp") / "models" / "net_g_2.pth").exists()
    tested = test_options(workshop.fp, "experiments/fp/models/net_g_latest.pth")
    assert workshop.test(tested) == 0
    assert workshop.test(tested) == 0
    assert len(list((workshop.folder / "results").glob("test_fp_archived_*"))) == 1


def test_saved_options_run_again(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=1") == 0
    first = workshop.network("fp", "g")["params"]["conv_first.weight"]
    saved = (workshop.experiment("fp") / "train_fp.yml").rename(workshop.folder / "again.yml")
    from basicsr_quant.cli.main import train_main

    assert train_main(["-opt", str(saved)]) == 0
    assert first.equal(workshop.network("fp", "g")["params"]["conv_first.weight"])


def test_debug(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "logger:print_freq=100", "train:total_iter=9", flags=["--debug"]) == 0
    log = (workshop.experiment("debug_fp") / "train_debug_fp.log").read_text()
    assert "iteration 1/9" in log and "validation val, iteration 8" in log and "iteration 3: psnr" not in log


def test_optional_sets_and_sets_without_ground_truth(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    tested = test_options(workshop.fp, "weights/fp.pth")
    tested["datasets"] |= {
        "test_2": {"name": "absent", "dataroot_gt": "nowhere", "dataroot_lq": "nowhere", "optional": True},
        "test_3": {"name": "photos", "dataroot_lq": "data/train/LR"}}
    assert workshop.test(tested, "val:save_img=true") == 0
    assert "datasets:test_2 is optional and 'nowhere' does not exist; skipped" in capfd.readouterr().err
    results = workshop.folder / "results" / "test_fp"
    summary = json.loads((results / "metrics.json").read_text())
    assert list(summary) == ["val", "photos"]
    assert summary["photos"]["mean"] == {} and summary["photos"]["images"] == 3
    assert len(list((results / "visualization" / "photos").iterdir())) == 3
    assert not (results / "photos.csv").exists()
    del tested["datasets"]["test_1"], tested["datasets"]["test_3"]
    assert workshop.test(tested) == 2
    assert "no test set is there" in capfd.readouterr().err


def test_two_sets_of_one_name_are_refused(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    tested = test_options(workshop.fp, "weights/fp.pth")
    tested["datasets"]["test_2"] = dict(tested["datasets"]["test_1"])
    assert workshop.test(tested) == 2
    assert "another test set is called 'val' too" in capfd.readouterr().err


def test_full_precision_file_is_calibrated_at_test(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    from basicsr_quant.cli.main import main

    workshop.dqc["cali_data_save_path"] = "keydata/patches.pth"
    assert main(["calibration-data", "-opt", str(workshop.write(workshop.dqc))]) == 0
    tested = test_options(workshop.dqc, "weights/fp.pth")
    assert workshop.test(tested) == 2
    assert "cali_data is missing" in capfd.readouterr().err
    assert workshop.test(tested, "cali_data=keydata/patches.pth") == 0
    assert load(workshop.folder / "keydata/patches.pth")["lq"].shape == (4, 3, 8, 8)


def test_architecture_of_basicsr_by_name(workshop: Workshop) -> None:
    workshop.fp["network_g"] = {"type": "basicsr:EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1,
                                "upscale": 2}
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    assert workshop.test(test_options(workshop.fp, "experiments/fp/models/net_g_latest.pth")) == 0
    assert "conv_first.weight" in workshop.network("fp", "g")["params"]


def test_self_ensemble_and_tiles(workshop: Workshop) -> None:
    tested = test_options(workshop.fp, "weights/fp.pth")
    found = {}
    ways = {"whole": [], "tiles": ["val:tile=8", "val:tile_overlap=4"], "ensemble": ["val:self_ensemble=true"]}
    for name, force in ways.items():
        assert workshop.test(tested, f"name={name}", *force) == 0
        summary = json.loads((workshop.folder / "results" / name / "metrics.json").read_text())
        found[name] = summary["val"]["mean"]["psnr"]
    assert len(set(found.values())) == 3
    assert abs(found["tiles"] - found["whole"]) < 1


def test_optional_validation_set_and_wandb_without_the_package(
    workshop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    workshop.fp["logger"] |= {"wandb": {"project": "some"}, "use_tb_logger": True}
    workshop.fp["datasets"]["val"] |= {"optional": True, "dataroot_lq": "nowhere"}
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 1 and "logger:wandb is set but does not work" in warnings[0]
    assert list((workshop.folder / "tb_logger" / "fp").glob("events*"))


def test_tensorboard_holds_losses_and_metrics(workshop: Workshop) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert workshop.train(workshop.fp, "logger:use_tb_logger=true") == 0
    events = EventAccumulator(str(workshop.folder / "tb_logger" / "fp"))
    events.Reload()
    assert {"losses/pixel", "lr", "metrics/val/psnr", "metrics/val/ssim"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("losses/pixel")] == [1, 2, 3, 4]
    assert workshop.train(workshop.fp, "logger:use_tb_logger=true") == 0
    assert list((workshop.folder / "tb_logger").glob("fp_archived_*"))


def test_folders_may_lie_anywhere(workshop: Workshop, tmp_path: Path) -> None:
    make_pairs(tmp_path / "else where" / "set", 2, 3)
    workshop.fp["datasets"]["train"] |= {"dataroot_gt": str(tmp_path / "else where/set/HR"),
                                         "dataroot_lq": str(tmp_path / "else where/set/LR")}
    assert workshop.train(workshop.fp, "train:total_iter=1", "path:experiments_root=out/runs") == 0
    assert (workshop.folder / "out/runs/fp/models/net_g_1.pth").is_file()


def test_chosen_test_sets(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    tested = test_options(workshop.dqc, "weights/fp.pth") | {"quant": {"upscale_only": "bicubic"}}
    tested["datasets"]["test_2"] = {**tested["datasets"]["test_1"], "name": "again"}
    assert workshop.test(tested, "val:test_sets=[again]") == 0
    assert set(json.loads((workshop.folder / f"results/{tested['name']}/metrics.json").read_text())) == {"again"}
    capfd.readouterr()
    assert workshop.test(tested, "val:test_sets=[agian]") == 2
    assert error_lines(capfd.readouterr().err) == ["error: val:test_sets: no test set is called 'agian' "
                                                   "(did you mean 'again'?)"]


def test_published_spelling_of_self_ensemble(workshop: Workshop) -> None:
    tested = test_options(workshop.dqc, "weights/fp.pth") | {"pathFP": {"pretrain_network_FP": "weights/fp.pth"}}
    means = []
    for name, force in (("plain", "quant:self_ensamble=false"), ("published", "quant:self_ensamble=true"),
                        ("ours", "val:self_ensemble=true")):
        assert workshop.test(tested, "quant:fp_test=true", force, f"name={name}") == 0
        means.append(json.loads((workshop.folder / f"results/{name}/metrics.json").read_text())["val"]["mean"]["psnr"])
    assert means[1] == means[2] != means[0]
