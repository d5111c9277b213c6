"""What commands say of options that no request can have: options and our words, before any call."""

import shlex

import pytest
from typer.testing import CliRunner

from fimlora_client.cli import app

CALIBRATE, EVALUATE, SWEEP = "calibrate m ROWS -b 8", "evaluate m ROWS -b 8", "sweep job_1 -b 8"
REFUSED = {
    f"{EVALUATE} --learning-rates 1e-3": "--learning-rates: must have at least 2 entries; it has 1",
    f"{EVALUATE} --learning-rates fast,slow": "are not numbers with commas between, as 1e-3,2e-3",
    f"{EVALUATE} --learning-rates 1e-3,": "are not numbers with commas between",
    f"{EVALUATE} --learning-rates ''": "are not numbers with commas between",
    f"{EVALUATE} --learning-rates 1e-3,nan": "--learning-rates entry 2: must be a finite number",
    f"{EVALUATE} --learning-rates 1e-3,99": "--learning-rates entry 2: must be at most 10",
    f"{EVALUATE} --methods ''": "--methods entry 1: must be 'fim', ",
    f"{EVALUATE} --methods fim,fimm": "did you mean 'fim'?",
    f"{EVALUATE} --plan a=%": "--plan a: must be sha256: and 64 hexadecimal digits, the id of",
    f"{EVALUATE} --plan 'a b=job_1'": "--plan: each name in it must be a plain name",
    f"{EVALUATE} --seeds one": "'--seeds': must be a whole number",
    f"{EVALUATE} --alpha 16": "all arms must have one scale, and one alpha gives each rank another",
    f"{EVALUATE} --alpha 16 --rslora": "which is another learning rate; give adapter.scale",
    f"{EVALUATE} --eval-share half": "'--eval-share': must be a number",
    f"{EVALUATE} --eval-share 2": "--eval-share: must be less than 1",
    "compare m ROWS -b 8 --methods fim": "--methods: methods=['fim']: at least two, each once",
    f"{CALIBRATE} --batches 0": "--batches: must be a whole number from 1 to 4096, or auto",
    f"{CALIBRATE} --target-modules a,": "--target-modules: name 2 must have 1 to 256 characters",
    f"{CALIBRATE} --exclude-modules ,": "--exclude-modules: name 1 must have 1 to 256 characters",
    f"{CALIBRATE} --modules-to-save ,": "--modules-to-save: name 1 must have 1 to 256 characters",
    f"{CALIBRATE} --target-parameters ,": "--target-parameters: name 1 must have 1 to 256 characters",
    f"{CALIBRATE} --group a,": "--group: group 1 must have names of 1 to 256 characters",
    f"{CALIBRATE} --rank-menu 8,4": "--rank-menu: must have ranks from 1 to 8192 in rising order",
    f"{CALIBRATE} --rank-menu 8,x": "--rank-menu 8,x: give ranks with commas between",
    f"{CALIBRATE} --per-type a:share=2": "--per-type a share: must be at most 1",
    f"{CALIBRATE} --per-type :share=1": "--per-type: each name in it must not be empty",
    f"{CALIBRATE} --per-type a:foo=1": "--per-type a foo: there is no such field; there are",
    f"{CALIBRATE} --column txt=a": "--column txt: there is no such field; there are",
    f"{CALIBRATE} --split test": "--split test: only a dataset of the hub has splits",
    f"{CALIBRATE} --scale 2 --alpha 16": "--scale 2 and --alpha 16: give one of both",
    f"{EVALUATE} --scale 2 --alpha 16": "--scale 2 and --alpha 16: give one of both",
    "plan job_1 -b 8 --scale 2 --alpha 16": "--scale 2 and --alpha 16: give one of both",
    f"{CALIBRATE} --rslora": "error rslora needs alpha",
    f"{CALIBRATE} --layers 0": "--layers: must be at least 1",
    f"{CALIBRATE} --deadline 0": "--deadline: must be more than 0",
    "calibrate 'a b' ROWS -b 8": "MODEL name: must be a plain name",
    f"{SWEEP} --first-batches 0": "--first-batches entry 1: must be at least 1",
    f"{SWEEP} --floors 1,1": "--floors: [1, 1]: at least one, each once",
    f"{SWEEP} --aggregations mean,median": "--aggregations entry 2: must be 'mean', 'max' or 'l2'",
    f"{SWEEP} --batches 0 --floors x": "--floors x: give whole numbers with commas between",
}
VALIDATORS = (
    "after validation",
    "Input should",
    "valid integer",
    "greater than",
    "[key]",
    "literal[",
)


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_value_is_told_by_its_option_in_our_words(line, tmp_path, monkeypatch):
    """With the exit code of wrong usage; no service is there to be asked."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": 0}\n')
    monkeypatch.setenv("FIMLORA_URL", "http://127.0.0.1:9")

    result = CliRunner().invoke(app, shlex.split(line.replace("ROWS", str(rows))))

    said = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2, result.output
    assert REFUSED[line] in said
    assert not [words for words in VALIDATORS if words in said]
