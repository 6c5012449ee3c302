"""Train with ZeRO: deepspeed --num_gpus=2 train_deepspeed.py deepspeed.config=zero3.json.

The JSON is merged with the run (configs/deepspeed holds three); torchrun starts it as well.
"""

from nl.core.stopped import importing

with importing():
    import hydra
    from omegaconf import DictConfig

    from nl.assembly import job, main, publish

    publish()  # the defaults of every registered part become Hydra nodes


@hydra.main(version_base="1.3", config_path="configs", config_name="mid")
def train(cfg: DictConfig) -> None:
    """Train one run as this rank."""
    job(cfg, strategy="deepspeed")


if __name__ == "__main__":
    main(train)
