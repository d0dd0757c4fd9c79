from __future__ import annotations

from pathlib import Path

from headrace.embedded.privacy_keys import FILE, ensure_keys
from headrace.ingestion.domain.key_ring import parse_keys
from headrace.ingestion.secrets import key_ring
from headrace.ingestion.settings import Settings


def test_a_stack_makes_its_key_ring_once_for_its_user_alone(tmp_path: Path) -> None:
    ensure_keys(tmp_path)
    path = tmp_path / FILE
    made = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    [key] = key_ring(Settings(privacy_keys_file=str(path))).keys
    assert (key.id, len(key.secret)) == ("k1", 32)
    # What a user adds stays.
    path.write_text(made + "k2=" + "A" * 44 + "\n")
    ensure_keys(tmp_path)
    assert [key.id for key in parse_keys(path.read_text()).keys] == ["k1", "k2"]
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
