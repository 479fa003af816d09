"""The notebook's own interrupt, in a real kernel: a blocking run stops after its step and saves; the kernel goes on."""

import json
import os
import time

import pytest
from jupyter_client.manager import start_new_kernel

from sloth_nb.training import RUN_FILE

SETUP = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from sloth_nb.catalog.embedded import default_model_path
from sloth_nb.training import SFTConfig, SFTTrainer

tokenizer = AutoTokenizer.from_pretrained(default_model_path())
config = AutoConfig.for_model(
    "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
)
talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Moss."}]
trainer = SFTTrainer(
    AutoModelForCausalLM.from_config(config),
    SFTConfig("run", max_steps=1_000_000, save_strategy="no", use_cpu=True, disable_tqdm=True),
    train_dataset=[{"messages": talk}] * 8,
    processing_class=tokenizer,
)
"""


@pytest.fixture
def kernel(tmp_path, repository):
    paths = [repository, repository / "kernels", repository / "widgets"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path), env=env)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def answer(client, message, timeout=120) -> str:
    """What the cell printed, once it is done; fails when it raised."""
    printed = []
    while True:
        reply = client.get_iopub_msg(timeout=timeout)
        if reply["parent_header"].get("msg_id") != message:
            continue
        content = reply["content"]
        if reply["msg_type"] == "stream":
            printed.append(content["text"])
        assert reply["msg_type"] != "error", content["traceback"]
        if content.get("execution_state") == "idle":
            return "".join(printed)


def until_step(path, step) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        lines = path.read_text().splitlines() if path.exists() else []
        if any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
            return
        time.sleep(0.1)
    raise AssertionError("the run never came so far")


@pytest.mark.parametrize("cell", ["trainer.train()", "trainer.start().wait()"])
def test_interrupting_the_kernel_stops_the_run_gracefully(kernel, tmp_path, cell):
    manager, client = kernel
    answer(client, client.execute(SETUP))
    running = client.execute(cell)
    until_step(tmp_path / "run" / RUN_FILE, 2)
    manager.interrupt_kernel()
    answer(client, running, timeout=60)
    said = answer(client, client.execute("print(trainer.run.state, trainer.run.events[-1].data['saved'])"))
    assert said.startswith("stopped") and "checkpoint-" in said
