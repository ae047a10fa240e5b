"""`maskaug train ppo|a2c|dqn|…`, Stable-Baselines3's algorithms, and `maskaug export` of what it saved itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from maskaug.options import EnvOptions, SB3Options

#: command → the algorithm's name in `maskaug.agents.sb3_defaults`, and its title.
COMMANDS = {
    "ppo": ("ppo", "PPO"),
    "a2c": ("a2c", "A2C"),
    "dqn": ("dqn", "DQN"),
    "sac": ("sac", "SAC"),
    "trpo": ("trpo", "TRPO (sb3-contrib)"),
    "qrdqn": ("qrdqn", "QR-DQN (sb3-contrib)"),
    "maskable-ppo": ("maskableppo", "MaskablePPO (sb3-contrib)"),
    "recurrent-ppo": ("recurrentppo", "RecurrentPPO (sb3-contrib)"),
}


def _command(algorithm: str, title: str) -> Callable[..., None]:
    def train_sb3(
        out: Path,
        env_id: str = "MaskAug-BUSI-v0",
        total_timesteps: int = 25_600,
        num_envs: int | None = None,
        seed: int = 0,
        device: str = "auto",
        checkpoint_every: int = 6_400,
        resume: bool = False,
        env: EnvOptions = EnvOptions(),
        agent: SB3Options = SB3Options(),
    ) -> None:
        """Train Stable-Baselines3's TITLE with the policy and the defaults of maskaug/agents/sb3_defaults.py.

        It plays the id's own action, or one that it can play where that is another (--env.action). --resume continues
        to the bit on the CPU, as with our own agents: checkpoints hold the replay too, SB3's own files would not.

        Args:
            out: the run's folder.
            env_id: a registered id; `maskaug envs` lists them.
            total_timesteps: masks to be judged in all, rounded up to whole rollouts; exploration follows it.
            num_envs: images a batch; 16, or 8 of DQN, QR-DQN and SAC.
            seed: of everything that is drawn.
            device: auto, cpu, cuda, …
            checkpoint_every: timesteps between checkpoints.
            resume: continue the run in --out.
            env: the environment.
            agent: the algorithm's settings.
        """
        from maskaug.benchmarks.sb3_runs import sb3_run
        from maskaug.benchmarks.training import train

        keywords, slots = sb3_run(algorithm, env_id, env.given(), num_envs)
        train(
            "SB3Agent", env_id, out=out, total_timesteps=total_timesteps, num_envs=slots, seed=seed, device=device,
            env=keywords, settings={"algorithm": algorithm, **agent.given()}, checkpoint_every=checkpoint_every,
            resume=resume, progress_bar=sys.stderr.isatty(),
        )  # fmt: skip

    assert train_sb3.__doc__ is not None
    train_sb3.__doc__ = train_sb3.__doc__.replace("TITLE", title)
    return train_sb3


#: the members of `maskaug train` that are Stable-Baselines3's.
TRAIN_SB3: dict[str, Callable[..., None]] = {
    command: _command(algorithm, title) for command, (algorithm, title) in COMMANDS.items()
}


def export(
    model: Annotated[Path, tyro.conf.Positional],
    out: Path,
    algorithm: str,
    trust: bool = False,
) -> None:
    """Turn a zip that Stable-Baselines3 saved into a masker.safetensors for `maskaug.load_masker`, which runs no code.

    Args:
        model: the zip file, of a model with this package's policies.
        out: the .safetensors file to write.
        algorithm: whose it is: ppo, a2c, dqn, sac, trpo, qrdqn, maskable-ppo or recurrent-ppo.
        trust: read it although that runs whatever code its author has put there; only for files of people you trust.
    """
    from maskaug.agents.sb3_zip import load_sb3_zip
    from maskaug.envs.errors import ConfigurationError

    if out.suffix != ".safetensors" or out.exists():
        raise ConfigurationError(f"{out} must be a new .safetensors file; choose another --out")
    agent = load_sb3_zip(model, algorithm, trust=trust, device="cpu")
    agent.save(out)
    print(f"{agent.title}, {agent.num_timesteps} timesteps: wrote {out}")
