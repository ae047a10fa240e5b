"""torchrun: several processes learn what one would have learnt and leave one folder; none waits for one that failed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_game import CASES, DATA, SLOTS, agent_of, go_on, play
from distributed_game import sgd as sgd_in_place_of_adam
from env_helpers import reconstructor, same, small
from test_resume_kills import assert_equal_runs

from maskaug.agents import bernoulli, plackett_luce
from maskaug.agents.checkpoint import read_state
from maskaug.agents.end_to_end import EndToEnd
from maskaug.cli import main
from maskaug.envs import distributed
from maskaug.envs.distributed import ALONE, Ranks, joined
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.torchrun import Place, place

HERE = Path(__file__).resolve().parent
GAME = [
    "--env.n", "60", "--env.image-size", "40", "--env.grid", "5", "--env.fill", "noise", "--env.judge-batch", "6",
    "--checkpoint-every", "32", "--device", "cpu", "--seed", "3", "--total-timesteps", "192",
]  # fmt: skip
#: what the first rank decides and does alone, too.
PATIENT = ["--num-envs", "4", "--patience", "2", "--warm-start", "True"]


def torchrun(*words: str, processes: int = 2) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--nproc-per-node={processes}", f"--master-port={port}"]
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip


def train(out: Path, *more: str) -> subprocess.Popen[str]:
    return torchrun("-m", "maskaug", "train", "apga", "--out", str(out), *GAME, *more)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return said, errors


# ---- the same weights ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have learnt, and in alone/ what one has; half is where one and two take over from another."""
    folder = tmp_path_factory.mktemp("learnt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", sgd_in_place_of_adam)
        play(folder / "alone", ALONE)
        finish(torchrun(str(HERE / "distributed_game.py"), str(folder)))
        for name in CASES:
            half, end = f"{name}.half.safetensors", f"{name}.from_two.safetensors"
            go_on(name, folder / half, folder / "alone" / end, ALONE)
    return folder


def weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    judge = state["game"]["judging"]["reward_model"]["weights"]
    averaged = {name: value for name, value in state["averaged"].items() if name != "n_averaged"}
    networks = {"policy": state["policy"], "averaged": averaged, "judge": judge}
    return {f"{kind}.{name}": value for kind, part in networks.items() for name, value in part.items()}


def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((value.double() - two[name].double()).abs().max()) for name, value in one.items())


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_with_half_the_batch_learn_what_one_learns_with_the_whole(learnt: Path, name: str) -> None:
    one, two = (read_state(folder / f"{name}.safetensors") for folder in (learnt / "alone", learnt))
    assert furthest(weights(one), weights(two)) < 1e-5
    # Not because nothing was learnt, by the policy or by the judge.
    start = read_state(learnt / "alone" / f"{name}.half.safetensors")
    for kind in ("policy", "averaged", *(["judge"] if CASES[name][0]["joint"] else [])):
        before, after = ({k: v for k, v in weights(s).items() if k.startswith(kind)} for s in (start, one))
        assert furthest(before, after) > 1e-3, kind
    # The same images in the same slots, the same draws, the same queue of the judge.
    for key in ("rngs", "order", "position", "try", "flipped"):
        assert same(one["game"][key], two["game"][key]), key
    assert same(one["generator"], two["generator"])
    judging = [state["game"]["judging"] for state in (one, two)]
    for key in ("rng", "pending_index", "pending_cells", "tried", "best_cells"):
        assert same(judging[0][key], judging[1][key]), key
    assert one["num_timesteps"] == two["num_timesteps"] == 7 * SLOTS * CASES[name][0]["repeat"]
    # And what is logged is that of the whole batch.
    assert one["extra"].keys() == two["extra"].keys()
    for key in one["extra"].keys() - {"time/fps"}:
        assert two["extra"][key] == pytest.approx(one["extra"][key], abs=1e-4), key


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(learnt: Path, name: str) -> None:
    whole, resumed = (read_state(learnt / f"{name}{end}.safetensors") for end in ("", ".resumed"))
    whole["extra"].pop("time/fps"), resumed["extra"].pop("time/fps")
    assert same(whole, resumed)


@pytest.mark.parametrize("name", CASES)
def test_another_number_of_ranks_goes_on(learnt: Path, name: str) -> None:
    one = weights(read_state(learnt / "alone" / f"{name}.safetensors"))
    assert furthest(one, weights(read_state(learnt / "alone" / f"{name}.from_two.safetensors"))) < 1e-5
    assert furthest(one, weights(read_state(learnt / f"{name}.from_one.safetensors"))) < 1e-5


def test_batch_norm_is_the_same_on_all_ranks(learnt: Path) -> None:
    found = read_state(learnt / "batch norm.safetensors")
    for kind in ("judge", "policy"):
        assert len(found[kind]) == 2
        assert len(set(found[kind])) == 1, kind
    assert found["judge"][0] != found["before"]
    # And what the first has learnt alone is handed on, buffers and all.
    assert found["copied"] == [found["before"]] * 2


# ---- a run's folder --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("torchrun") / "run"
    said, _ = finish(train(out, *PATIENT))
    return out, said


def test_one_folder_is_left_and_one_process_speaks(run: tuple[Path, str]) -> None:
    out, said = run
    assert said.count("APGA on MaskAug-Synthetic-v0") == said.count(f"wrote {out}/") == 1
    assert "4 at a time" in said
    assert said.count("the judge starts with a validation accuracy") == 1
    names = {
        "judge_start.safetensors",
        "config.json",
        "metrics.csv",
        "results.json",
        "masks.png",
        "masker.safetensors",
        "judge.safetensors",
    }
    assert {path.name for path in out.iterdir() if path.suffix} - {".lock"} == names
    assert len(list((out / "tensorboard").iterdir())) == 1
    rows = (out / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(16, 193, 16))
    config = json.loads((out / "config.json").read_text())
    assert config["resolved"]["processes"] == 2
    assert config["asked"]["num_envs"] == 4
    results = json.loads((out / "results.json").read_text())
    assert results["timesteps"] == 192
    assert results["judge.epochs"] == 1
    assert main(["evaluate", str(out), "--device", "cpu", "--split", "val"]) == 0


def test_a_run_whose_processes_are_killed_resumes_to_the_bit(run: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    more = [*PATIENT, "--resume"]
    process = train(out, *more)
    metrics = out / "metrics.csv"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > 5):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(train(out, *more))
    assert_equal_runs(run[0], out)


#: first something that all ranks refuse, then a run that fails on one of them.
FAILS = """
import contextlib, sys
from maskaug import cli
from maskaug.agents.apga import APGA
from maskaug.envs.errors import JudgeError
from maskaug.envs.torchrun import place

with contextlib.suppress(SystemExit):
    assert cli.main([*sys.argv[1:], "--num-envs", "5"]) == 2
update = APGA._update

def broken(self, env, observation):
    if place().rank == 1 and self.updates == 2:
        raise JudgeError("nothing is finite here")
    return update(self, env, observation)

APGA._update = broken
sys.exit(cli.main([*sys.argv[1:], "--num-envs", "4"]))
"""


def test_what_fails_is_said_once_and_nobody_waits_for_it(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    process = torchrun(str(script), "train", "apga", "--out", str(tmp_path / "run"), *GAME)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    refused, failed = (line for line in errors.splitlines() if "maskaug: error" in line)
    assert refused.endswith(
        "num_envs=5 cannot be shared equally by the 2 processes of torchrun; use a multiple of 2, 6 for example"
    )
    assert failed == "maskaug: error (process 1 of 2): nothing is finite here"


# ---- what is refused, and the parts ----------------------------------------------------------------------------------


def started_by_torchrun(patch: pytest.MonkeyPatch, rank: int = 0) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
        patch.setenv(name, str(value))


def test_only_torchrun_makes_several_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # as other launchers do
    monkeypatch.setenv("RANK", "3")
    assert place() == Place(0, 1, 0)
    with joined("cpu") as ranks:
        assert ranks is ALONE
    started_by_torchrun(monkeypatch, rank=1)
    assert place() == Place(1, 2, 1)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("words", [["envs"], ["train", "distilled", "--out", "x"], ["evaluate", "x"]])
def test_other_commands_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], rank: int
) -> None:
    started_by_torchrun(monkeypatch, rank)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said == ("" if rank else "maskaug: error: torchrun is for `maskaug train apga`; start others without it\n")


def spread(ranks: Ranks, **keywords: Any) -> MaskVectorEnv:
    env = MaskVectorEnv(2, dataset=DATA, grid=5, device="cpu", **keywords)
    env.game.spread(ranks)
    return env


def test_what_cannot_be_spread_is_refused() -> None:
    two = Ranks(0, 2)
    with pytest.raises(ConfigurationError, match="judge_batch=7 cannot be shared equally by the 2 processes"):
        spread(two, reward_model=small(DATA), judge_batch=7)
    with pytest.raises(ConfigurationError, match=r"reconstructor learns from one slot after the other.*joint=False"):
        spread(two, objective="reconstruction", reward_model=reconstructor(DATA))
    assert spread(two, objective="reconstruction", reward_model=reconstructor(DATA), joint=False).game.total_envs == 4
    env = spread(two, reward_model=small(DATA), joint=False)
    with pytest.raises(ConfigurationError, match="EndToEnd learns in one process; start it without torchrun"):
        EndToEnd(env, device="cpu").learn(10)
    env = MaskVectorEnv(2, dataset=DATA, grid=5, device="cpu", reward_model=small(DATA), joint=False)
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="this game has begun"):
        env.game.spread(two)


def test_one_try_of_one_image_has_others_on_other_ranks() -> None:
    env = MaskVectorEnv(1, dataset=DATA, grid=5, device="cpu", reward_model=small(DATA), joint=False)
    agent = agent_of("one try", ALONE)
    with pytest.raises(ConfigurationError, match="nothing to be compared with"):
        agent.check_env(env)
    env.game.spread(Ranks(1, 2))
    agent.check_env(env)


def test_each_process_takes_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = [str(distributed._device_of(name, Place(5, 8, 1))) for name in ("auto", "cuda", "cpu")]
    assert devices == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(ConfigurationError, match="each process has its own; use device='cuda'"):
        distributed._device_of("cuda:1", Place(0, 2, 0))
    with pytest.raises(ConfigurationError, match=r"sees 2 CUDA devices.*number 3; use --nproc-per-node=2"):
        distributed._device_of("cuda", Place(2, 4, 2))


def test_draws_of_a_rank_are_its_rows_of_those_of_all() -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    for sample in (plackett_luce.sample, bernoulli.sample):
        whole = sample(logits, 4, torch.Generator().manual_seed(5))
        parts = [
            sample(logits[2 * rank : 2 * rank + 2], 4, torch.Generator().manual_seed(5), Ranks(rank, 3))
            for rank in range(3)
        ]
        assert torch.equal(torch.cat(parts, 1), whole)
    assert [Ranks(rank, 3).rows(6) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]


def test_memory_is_asked_for_a_share_and_told_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "wrap", lambda _, network: network)
    found = spread(Ranks(0, 2), reward_model=small(DATA), judge_batch=12).game.judging.demands()
    assert [(d.keyword, d.value, d.images, d.each, d.shared) for d in found] == [
        ("num_envs", 4, 2, 1, 2),
        ("judge_batch", 12, 12, 2, 2),
    ]
