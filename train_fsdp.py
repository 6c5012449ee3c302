"""Train fully sharded: torchrun --nproc_per_node=2 train_fsdp.py --config-name mid_smoke."""

from nl.core.stopped import importing

with importing():
    import hydra
    from omegaconf import DictConfig

    from nl.assembly import job, main, publish

    publish()  # the defaults of every registered part become Hydra nodes


@hydra.main(version_base="1.3", config_path="configs", config_name="mid")
def train(cfg: DictConfig) -> None:
    """Train one run as this rank."""
    job(cfg, strategy="fsdp2")


if __name__ == "__main__":
    main(train)
