"""Rewrite a GGUF file's Q4_1 tensors in another quantisation: `requantise.py SOURCE TARGET Q4_0`.

Run by path in a Python that has the `gguf` package on its path. Owns the conversion; where the files
lie and that they appear atomically is its caller's business (`tightrope.app.embedded`).
Other tensors and all metadata are copied as they are, except the file type.
"""

import sys

import gguf

WRITTEN_BY_THE_WRITER = {"general.architecture", "general.file_type", "general.alignment"}


def main() -> int:
    """Write TARGET; status 1 with one line on standard error when SOURCE cannot be read."""
    source, target, name = sys.argv[1:]
    try:
        requantise(source, target, name)
    except (OSError, ValueError, KeyError) as error:
        print(f"requantise: {source}: {error}", file=sys.stderr)
        return 1
    return 0


def requantise(source: str, target: str, name: str) -> None:
    """Q4_1 tensors of `source` become `name` ("Q4_0", "Q8_0") in `target`."""
    reader = gguf.GGUFReader(source)
    wanted = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{name}"])
    _copy_metadata(reader, writer)
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in WRITTEN_BY_THE_WRITER:
            continue
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=element)


if __name__ == "__main__":
    raise SystemExit(main())
