import msgspec

from pliant.measurement import Measurement
from pliant.receipt import Conditions, Receipt

RECEIPT = Receipt(
    address="d3-b4",
    weight_bytes=800_000,
    memory_bytes=1_000_000,
    bits_per_byte=1.2345,
    perplexity=17.0,
    conditions=Conditions(text="valid.txt", tokens=4096, context=128, threads=2),
    speed=Measurement.of([99.0, 101.0, 100.0], "token/s", "decode"),
)


def test_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(RECEIPT), type=Receipt) == RECEIPT


def test_reads_as_a_line() -> None:
    speed = "decode 100 token/s [99.0, 101] n=3"
    assert str(RECEIPT) == f"d3-b4: 1.234 bits/byte in 1.00 MB, {speed}"
