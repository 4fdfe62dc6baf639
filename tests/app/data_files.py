"""Data files that are missing, damaged, or do not fit the model: exit code 3."""
import gzip
import os
import struct

DATA = 3
TABLE = "a,b,c,d,label\n" + "".join(f"{i},{i / 3},{-i},0.5,{i % 3}\n" for i in range(60))


def text(content, facts, tokenizer="byte", path="text.txt", vocabulary=256):
    def case(place):
        if content is not None:
            (place.folder / path).write_bytes(content)
        config = place.gpt()
        config["data"] = {"type": "text", "path": path, "tokenizer": tokenizer, "validation_fraction": 0.1}
        config["model"]["vocab_size"] = vocabulary
        place.refused(config, DATA, (path, *facts))
    return case


def csv(content, facts, **data):
    def case(place):
        (place.folder / "table.csv").write_text(content)
        place.refused(place.mlp(type="csv", path="table.csv", **{"target": "label", **data}), DATA, ("table.csv", *facts))
    return case


def idx_file(type_code, dims, body):
    return struct.pack(f">BBBB{len(dims)}I", 0, 0, type_code, len(dims), *dims) + body


def images(count=40):
    return idx_file(8, (count, 2, 2), bytes(range(4)) * count)


def labels(values):
    return idx_file(8, (len(values),), bytes(values))


def idx(image_bytes, label_bytes, facts):
    def case(place):
        (place.folder / "images").write_bytes(image_bytes)
        (place.folder / "labels").write_bytes(label_bytes)
        place.refused(place.mlp(type="idx", images="images", labels="labels"), DATA, facts)
    return case


def few_samples(place):
    config = place.gpt()
    config["data"] = {"type": "synthetic", "samples": 1, "validation_fraction": 0.5}
    place.refused(config, DATA, ("validation_fraction", "1"))


def unreadable(place):
    (place.folder / "text.txt").mkdir()
    config = place.gpt()
    config["data"] = {"type": "text", "path": "text.txt"}
    place.refused(config, DATA, ("text.txt", "directory"))


def named_pipe(place):
    os.mkfifo(place.folder / "text.txt")
    config = place.gpt()
    config["data"] = {"type": "text", "path": "text.txt"}
    place.refused(config, DATA, ("text.txt", "regular file"))


def cases():
    good = labels([i % 3 for i in range(40)])
    rows = TABLE.splitlines(keepends=True)
    return [
        ("no text", text(None, ("no such file",))),
        ("empty text", text(b"", ("empty",))),
        ("text of one sample too few", text(b"12345", ("8",))),
        ("text that is no UTF-8", text(b"abc\xff" * 100, ("UTF-8", "3"), tokenizer="char")),
        ("more characters than the vocabulary", text(bytes(range(33, 127)) * 9, ("94", "20"), tokenizer="char", vocabulary=20)),
        ("a folder as text", unreadable),
        ("a named pipe as text", named_pipe),
        ("unpacked text that ends early", text(gzip.compress(b"x" * 9000)[:20], ("ends early",))),
        ("a ragged table", csv("".join(rows[:5]) + "1,2\n" + "".join(rows[5:]), ("6", "2", "5"))),
        ("a word for a number", csv("".join(rows[:5]) + "1,two,3,4,0\n", ("6", "two", "b"))),
        ("not-a-number in a table", csv("".join(rows[:5]) + "1,nan,3,4,0\n", ("6", "nan"))),
        ("a label too large", csv(TABLE + "1,2,3,4,7\n", ("3",))),
        ("no target column", csv(TABLE, ("lable", "label"), target="lable")),
        ("a table without rows", csv(rows[0], ("no",))),
        ("an empty table", csv("", ("empty",))),
        ("too few features", csv("".join(",".join(r.split(",")[1:]) for r in rows), ("3", "4"))),
        ("images that end early", idx(images()[:-9], good, ("images",))),
        ("packed images that end early", idx(gzip.compress(images())[:-20], good, ("images", "ends early"))),
        ("images with another magic", idx(b"\x89PNG" + images()[4:], good, ("images",))),
        ("images of floats", idx(images()[:2] + b"\x0d" + images()[3:], good, ("images",))),
        ("a label of no class", idx(images(), labels([9] * 40), ("labels", "9", "3"))),
        ("fewer labels than images", idx(images(), labels([1] * 39), ("39", "40"))),
        ("images of another size", idx(idx_file(8, (40, 3, 3), bytes(360)), good, ("9", "4"))),
        ("an image count of 2^32", idx(images()[:4] + b"\xff" * 12 + images()[16:], good, ("images",))),
        ("nothing left to train on", few_samples),
    ]
