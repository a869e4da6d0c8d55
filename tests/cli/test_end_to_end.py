"""Commands on the real small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sapwood.cli import main


def test_explain(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(smollm2), "--device", "cpu", "--max-num-seqs", "3"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "135M parameters, 30 layers" in lines["model"]
    assert lines["max_num_seqs"].split()[1:] == ["3", "as", "asked"]
    assert lines["max_model_len"].split()[1] == "8192"


def test_explain_a_model_that_drafts(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tiny_model), "--device", "cpu", "--speculative-model", str(tiny_model)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "0M parameters" in lines["draft"] and "prediction,tree,ngram,draft" in lines["speculation"]


def test_run_a_file_and_resume_it(smollm2: Path, tmp_path: Path) -> None:
    prompts, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    capital = {"prompt": "The capital of France is", "max_tokens": 2, "custom_id": "fr"}
    prompts.write_text(f'{json.dumps(capital)}\n{{"prompt": "x", "temperature": -1}}\n')
    command = [sys.executable, "-m", "sapwood", "run", "--model", str(smollm2), "--device", "cpu", "--temperature", "0"]
    command += ["--input", str(prompts), "--output", str(answers), "--kv-cache-memory", "64M"]

    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stdout) == (1, ""), first.stderr
    results = {result["index"]: result for result in map(json.loads, answers.read_text().splitlines())}
    assert results[0]["custom_id"] == "fr"
    assert results[0]["text"].startswith(" Paris")
    assert results[0]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 0}
    assert "temperature" in results[1]["error"]

    body = {"prompt": "The capital of France is", "max_tokens": 2, "model": "any"}
    batch = {"custom_id": "batch", "method": "POST", "url": "/v1/completions", "body": body | {"temperature": 0}}
    prompts.write_text(f'{json.dumps(capital)}\n{{"prompt": "x", "max_tokens": 1}}\n{json.dumps(batch)}\n')
    second = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    results = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [result["index"] for result in results].count(0) == 1 and len(results) == 4
    (of_batch,) = (result for result in results if result["index"] == 2)
    assert of_batch["response"]["body"]["choices"][0]["text"].startswith(" Paris") and of_batch["custom_id"] == "batch"
