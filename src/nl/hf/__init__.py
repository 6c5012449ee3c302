"""Models of nl inside Hugging Face transformers. Floor 8.

Importing this registers them: afterwards ``AutoModelForCausalLM.from_pretrained(directory)`` reads
what ``nl export --to hf`` wrote.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from nl.hf.cache import NLCache
from nl.hf.model import NLConfig, NLForCausalLM

__all__ = ["NLCache", "NLConfig", "NLForCausalLM"]

AutoConfig.register(NLConfig.model_type, NLConfig, exist_ok=True)
AutoModelForCausalLM.register(NLConfig, NLForCausalLM, exist_ok=True)
