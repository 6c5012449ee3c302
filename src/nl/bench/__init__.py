"""Speed and memory as ratios inside one run: train steps, single layers, GEMM peak. Floor 8."""

from nl.bench.config import BenchConfig
from nl.bench.run import bench
from nl.bench.show import as_table, figure

__all__ = ["BenchConfig", "as_table", "bench", "figure"]
