"""The type of anything that JSON can say; payloads of nodes are of this type and nothing wider."""

from __future__ import annotations

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
