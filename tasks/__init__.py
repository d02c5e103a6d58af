"""What a model is for. A task says where labels come from, which head the encoder wears and how it is scored."""

from tasks.symptoms import Symptoms

TASKS = {"symptoms": Symptoms}
