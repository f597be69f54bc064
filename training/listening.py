"""Samples to listen to while a model trains: one validation example, each task, as latents; then the codec makes sound.

Conditions are the embeddings stored with the data, so that no text encoder is in the training process.
"""

import torch

from manifests.shards import TRACKS
from mgeldm.codec import Codec
from mgeldm.codec.long import decode_long
from mgeldm.diffusion.schedule import Objective
from mgeldm.sampling import SamplingConfig, noise_for, sample
from mgeldm.tasks import TASKS, track_index
from training.noising import Examples
from training.validation import Network

SAMPLING = SamplingConfig(steps=25)


def samples(
    network: Network,
    examples: dict[str, Examples],
    codec: Codec | None,
    objective: Objective,
    mean: torch.Tensor,
    std: torch.Tensor,
) -> list[tuple[str, torch.Tensor, int]]:
    """Name, wave ``[T]`` and sample rate: for each task what is given, and each track that the task keeps.

    Nothing without a codec, for processes whose share of the network is wanted and whose words are not.
    """
    waves = []

    def add(name: str, latents: torch.Tensor) -> None:
        if codec is None:
            return
        wave = decode_long(codec, latents * std + mean).float().mean(dim=0).clamp(-1, 1)
        waves.append((name, wave.cpu(), codec.spec.sample_rate))

    for name, known in examples.items():
        task = TASKS[name]
        clean = (known.latents[:1] - mean) / std
        embeddings = torch.zeros_like(known.embeddings[:1])
        mask = torch.zeros(len(TRACKS), dtype=torch.bool, device=clean.device)
        for track in {task.prompted, task.given} - {None}:
            embeddings[:, track_index(str(track))] = known.embeddings[:1, track_index(str(track))]
        if task.given is not None:
            mask[track_index(task.given)] = True
            add(f"{name}/given {task.given}", clean[0, track_index(task.given)])
        noise = noise_for(0, [name], tracks=len(TRACKS), channels=clean.shape[2], frames=clean.shape[3])
        made = sample(network, clean, mask, embeddings, noise.to(clean.device), SAMPLING, objective=objective)
        for track in task.kept:
            add(f"{name}/{track}", made[0, track_index(track)])
    return waves
