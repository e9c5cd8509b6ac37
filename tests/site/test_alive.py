"""The engine that trains in the page, in a browser, beside PyTorch and the library."""

import base64
import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import pedagogic_peft as pp
from pedagogic_peft import BottleneckAdapter, LoRA, PrefixTuning, PromptTuning, attach, load, save
from pedagogic_peft.course.experiments import task_adapters
from pedagogic_peft.course.models import pocket_folder
from pedagogic_peft.course.pocket import stories, tasks
from pedagogic_peft.training.loop import repeat, shuffled
from pedagogic_peft.training.train import train

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "tools"))
BASES = ("pocket-gpt", "pocket-gpt-small", "pocket-gpt-tiny")
METHODS = {
    "lora": LoRA(r=8, alpha=16, target_modules="all-linear"),
    "lora of two maps": LoRA(r=2, alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True),
    "houlsby": BottleneckAdapter(bottleneck_size=16, placement="houlsby"),
    "pfeiffer": BottleneckAdapter(bottleneck_size=5),
    "prompt": PromptTuning(5),
    "prefix": PrefixTuning(4),
}
SAME_LOGITS, SAME_LOSS = 1e-4, 1e-3


class Page:
    """A page with the engine; `ask` sends a request to its thread."""

    def __init__(self, tab):
        self.tab = tab

    def ask(self, action: str, **wanted):
        return self.tab.evaluate(
            "([action, wanted]) => engine.ask(action, revive(wanted), (at) => { told.push(at); })",
            [action, wanted],
        )

    def place(self, base: str) -> None:
        """Give the engine a base in float32, as it is in the library."""
        folder = pocket_folder(base)
        tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        config = json.loads((folder / "config.json").read_text("utf-8"))
        about = {"config": config, "vocabulary": tokenizer["model"]["vocab"]}
        weights = blob(folder / "model.safetensors")
        given = {"kernel": self.kernel, "world": stories.WORLD, "weights": weights, "about": about}
        self.ask("place", base=base, **given)

    @property
    def told(self):
        return self.tab.evaluate("told.splice(0)")


def blob(file: Path) -> dict:
    return {"base64": base64.b64encode(file.read_bytes()).decode("ascii")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The engine's files alone, served; none of the site is needed."""
    from alive import export

    folder = tmp_path_factory.mktemp("site")
    export(folder / "alive")
    (folder / "index.html").write_text(
        """<script type="module">
            import { Engine } from "./alive/client.js";
            const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            window.revive = (x) => {
                if (!x || typeof x !== "object") return x;
                if (x.base64) return bytes(x.base64);
                if (Array.isArray(x)) return x.map(revive);
                return Object.fromEntries(Object.entries(x).map(([k, v]) => [k, revive(v)]));
            };
            window.told = [];
            window.engine = new Engine();
        </script>"""
    )
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def page(browser, place):
    folder, address = place
    tab = browser.new_page()
    tab.set_default_timeout(300_000)
    tab.goto(f"{address}/index.html")
    tab.wait_for_function("window.engine")
    made = Page(tab)
    made.kernel = blob(folder / "alive" / "data" / "kernel.wasm")
    yield made
    tab.close()


def texts_of(tokenizer) -> list[list[int]]:
    """Texts of several kinds and lengths."""
    some = [e.prompt for e in tasks.sentiment(5, 71) + tasks.questions(2, 72)] + ["lily"]
    return [tokenizer(text).input_ids for text in some]


@torch.no_grad()
def last_logits(model, texts) -> torch.Tensor:
    return torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in texts])


def furthest(page, model, texts, name=None) -> float:
    found = torch.tensor(page.ask("logits", ids=texts, name=name))
    return (found - last_logits(model, texts)).abs().max().item()


@pytest.mark.parametrize("base", BASES)
def test_logits_are_pytorchs(page, base):
    page.place(base)
    model, tokenizer = pp.load_base(base)
    assert furthest(page, model, texts_of(tokenizer)) <= SAME_LOGITS


@pytest.mark.parametrize("base", BASES)
def test_what_rounding_to_16_bits_changes(page, place, base):
    """The weights that the site sends: how far the logits move, on average and at most."""
    assert page.ask("open", base=base)["kernel"] == "WebAssembly"
    model, tokenizer = pp.load_base(base)
    texts = texts_of(tokenizer)
    off = torch.tensor(page.ask("logits", ids=texts)) - last_logits(model, texts)
    assert off.pow(2).mean().sqrt().item() <= 3e-4
    assert off.abs().max().item() <= 5e-3


def test_the_stored_adapters_write_the_same_in_8_bits(page):
    page.ask("open", base="pocket-gpt")
    for name, draw in task_adapters.TASKS.items():
        model, tokenizer = pp.load_base("pocket-gpt")
        load(model, task_adapters.FOLDER / name)
        texts = [e.prompt for e in draw(12, 77)]
        page.ask("fetchAdapter", name=name, folder=name)
        found = page.ask("write", texts=texts, name=name, most=12)
        wanted = tasks.continuations(model, tokenizer, texts, 12)
        assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= 11, name


def files_of(folder: Path) -> dict:
    return {file.name: blob(file) for file in folder.iterdir()}


def write(files: dict, folder: Path) -> Path:
    """What the page saved."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(base64.b64decode(content))
    return folder


def saved(page, name: str, folder: Path) -> Path:
    files = page.tab.evaluate(
        """async (name) => {
            const text = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
            const files = Object.entries(await engine.ask("save", { name }));
            return Object.fromEntries(files.map(([file, bytes]) => [file, text(bytes)]));
        }""",
        name,
    )
    return write(files, folder)


@pytest.mark.parametrize(
    ("base", "method"),
    [("pocket-gpt", m) for m in METHODS] + [("pocket-gpt-tiny", m) for m in ("lora", "prefix")],
)
def test_ten_steps_are_the_librarys(page, tmp_path, base, method):
    """From the same start, on the same batches: the losses; then each reads the other's file."""
    torch.manual_seed(3)
    model, tokenizer = pp.load_base(base)
    attach(model, METHODS[method])
    save(model, tmp_path / "start")
    examples = tasks.encode(tokenizer, tasks.sentiment(60, 4))
    order = list(repeat(shuffled(range(len(examples)), list, 8, 5), 10))
    settings = {"steps": 10, "batch_size": 8, "lr": 5e-3}
    losses = train(model, examples, seed=5, progress=False, **settings).column("loss")

    page.place(base)
    fixed = {"files": files_of(tmp_path / "start"), "examples": examples, "batches": order}
    assert page.told is not None
    done = page.ask("train", name="mine", fixed=fixed, seed=0, steps=10, batchSize=8, lr=5e-3)
    assert done["finished"]
    found = [at["loss"] for at in page.told if "loss" in at]
    assert found == pytest.approx(losses, abs=SAME_LOSS)

    texts = texts_of(tokenizer)
    fresh, _ = pp.load_base(base)
    load(fresh, saved(page, "mine", tmp_path / "from the page"))
    assert furthest(page, fresh, texts, "mine") <= SAME_LOGITS
    save(model, tmp_path / "end")
    page.ask("load", name="theirs", files=files_of(tmp_path / "end"))
    assert furthest(page, model, texts, "theirs") <= SAME_LOGITS


def test_peft_reads_what_the_page_saves(page, tmp_path):
    from peft import PeftModel

    page.place("pocket-gpt-tiny")
    data = {"task": "sentiment", "n": 40, "seed": 1}
    settings = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    page.ask(
        "train",
        name="mine",
        method="lora",
        settings=settings,
        data=data,
        seed=2,
        steps=5,
        batchSize=4,
        lr=5e-3,
    )
    model, tokenizer = pp.load_base("pocket-gpt-tiny")
    theirs = PeftModel.from_pretrained(model, saved(page, "mine", tmp_path / "folder"))
    assert furthest(page, theirs, texts_of(tokenizer), "mine") <= SAME_LOGITS


def test_a_checkpoint_that_does_not_fit_is_refused_whole(page, tmp_path):
    model, _ = pp.load_base("pocket-gpt-small")
    attach(model, METHODS["lora"])
    good = save(model, tmp_path / "small")
    page.place("pocket-gpt-tiny")
    for change, message in (
        ({}, "this base needs"),
        ({"use_dora": True}, "use_dora is true"),
        ({"peft_type": "VERA"}, 'peft_type is "VERA"'),
    ):
        config = json.loads((good / "adapter_config.json").read_text("utf-8")) | change
        files = files_of(good) | {
            "adapter_config.json": {
                "base64": base64.b64encode(json.dumps(config).encode()).decode()
            }
        }
        with pytest.raises(Exception, match=message):
            page.ask("load", name="bad", files=files)
        with pytest.raises(Exception, match="no adaptation bad"):
            page.ask("logits", ids=[[1]], name="bad")
    with pytest.raises(Exception, match=r"expected adapter_config\.json"):
        page.ask("load", name="bad", files={})


def test_the_grammar_writes_what_python_writes(page):
    page.place("pocket-gpt-tiny")
    twins = {
        "sentiment": tasks.sentiment,
        "questions": tasks.open_questions,
        "summary": tasks.summaries,
        "translation": tasks.translation,
    }
    for style in ("tale", "shout", "pirate"):
        twins[style] = partial(tasks.styled, style, sentences=1)
    for task, twin in twins.items():
        for seed in (0, 7, 2**31 + 5, 2**40):
            found = page.ask("drawn", task=task, n=60, seed=seed)
            assert [tuple(e.values()) for e in found] == [tuple(e) for e in twin(60, seed)], (
                task,
                seed,
            )


SMALL = {"r": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}
RUN = {"method": "lora", "settings": SMALL, "seed": 9, "steps": 8, "batchSize": 4, "lr": 5e-3}
RUN |= {"data": {"task": "sentiment", "n": 50, "seed": 1}}


def test_a_seed_reproduces_and_a_stopped_run_goes_on(page):
    page.place("pocket-gpt-tiny")
    losses = []
    for name in ("first", "second"):
        page.told  # noqa: B018
        page.ask("train", name=name, **RUN)
        losses.append([at["loss"] for at in page.told])
    page.tab.evaluate(
        """async (run) => {
            let finished = false;
            while (!finished) ({ finished } = await engine.ask("train", { name: "third", ...run }, (at) => {
                told.push(at);
                if (at.step === 3) engine.ask("stop");
            }));
        }""",
        RUN,
    )
    losses.append([at["loss"] for at in page.told])
    assert losses[0] == losses[1] == losses[2]
    page.ask("train", name="other", **(RUN | {"seed": 10}))
    assert [at["loss"] for at in page.told] != losses[0]


def test_merged_and_unmerged(page):
    page.place("pocket-gpt-tiny")
    page.ask("train", name="mine", **RUN)
    text = [[1, 20, 30, 40]]
    plain, beside = page.ask("logits", ids=text), page.ask("logits", ids=text, name="mine")
    half = page.ask("logits", ids=text, name="mine", weights=[0.5])
    page.ask("merge", name="mine")
    assert page.ask("logits", ids=text)[0] == pytest.approx(beside[0], abs=SAME_LOGITS)
    page.ask("merge", name="mine", weight=0.5)
    assert page.ask("logits", ids=text)[0] == pytest.approx(half[0], abs=SAME_LOGITS)
    page.ask("unmerge")
    assert page.ask("logits", ids=text) == plain  # bit for bit


def test_without_webassemblys_vectors_it_computes_the_same(page):
    page.place("pocket-gpt-tiny")
    text = [[1, 20, 30, 40, 50], [1, 9]]
    fast = page.ask("logits", ids=text)
    assert page.ask("open", base="pocket-gpt-tiny", plain=True)["kernel"] == "JavaScript"
    model, _ = pp.load_base("pocket-gpt-tiny")
    assert torch.tensor(page.ask("logits", ids=text)) == pytest.approx(torch.tensor(fast), abs=5e-3)


def cpu_seconds(browser) -> float:
    """The processor time of all pages so far: a busy machine does not count."""
    session = browser.new_browser_cdp_session()
    found = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return sum(process["cpuTime"] for process in found if process["type"] == "renderer")


def test_the_time_of_a_hundred_steps(page, browser):
    """At most 60 s on one core, and 20 s are aimed at, with what is measured on the way."""
    page.ask("open", base="pocket-gpt")
    maps = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    run = {"method": "lora", "settings": {"r": 8, "alpha": 16, "target_modules": maps}}
    run |= {"data": {"task": "sentiment", "n": 2000, "seed": 1, "longest": 16}}
    run |= {"watch": {"task": "sentiment", "n": 40, "seed": 3}}
    run |= {"test": {"task": "sentiment", "n": 100, "seed": 2}}
    start = cpu_seconds(browser)
    page.ask("train", name="timed", seed=0, steps=100, batchSize=8, lr=1e-2, **run)
    spent = cpu_seconds(browser) - start
    print(f"100 steps of batch 8, measured six times: {spent:.1f} s of one core")
    assert spent <= 60
    scores = [at["accuracy"] for at in page.told if "accuracy" in at]
    assert scores[-1] >= 0.8 > scores[0]
