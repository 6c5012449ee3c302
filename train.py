"""Train on one device: python train.py --config-name pilot_smoke [key=value ...]."""

from nl.core.stopped import importing

with importing():
    import hydra
    from omegaconf import DictConfig

    from nl.assembly import job, main, publish

    publish()  # the defaults of every registered part become Hydra nodes


@hydra.main(version_base="1.3", config_path="configs", config_name="pilot")
def train(cfg: DictConfig) -> None:
    """Train one run in this process."""
    job(cfg, strategy="single")


if __name__ == "__main__":
    main(train)
