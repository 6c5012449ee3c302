"""Train data parallel: torchrun --nproc_per_node=2 train_dist.py --config-name pilot_smoke."""

from nl.core.stopped import importing

with importing():
    import hydra
    from omegaconf import DictConfig

    from nl.assembly import job, main, publish

    publish()  # the defaults of every registered part become Hydra nodes


@hydra.main(version_base="1.3", config_path="configs", config_name="pilot")
def train(cfg: DictConfig) -> None:
    """Train one run as this rank."""
    job(cfg, strategy="ddp")


if __name__ == "__main__":
    main(train)
