"""Real pictures, made by a library that is not ours."""

import io

from PIL import Image

WIDTH, HEIGHT = 37, 21


def image(
    kind: str = "png", *, colour: str = "red", size: tuple[int, int] = (WIDTH, HEIGHT), **options: object
) -> bytes:
    """A picture of one colour, as a file of this kind: png, jpeg, gif or webp."""
    file = io.BytesIO()
    Image.new("RGBA" if kind == "webp" and options.get("exact") else "RGB", size, colour).save(file, kind, **options)
    return file.getvalue()


REAL = {
    "png": ("image/png", image("png")),
    "jpeg": ("image/jpeg", image("jpeg")),
    "progressive jpeg with a comment": ("image/jpeg", image("jpeg", progressive=True, comment=b"x" * 300)),
    "gif": ("image/gif", image("gif")),
    "lossy webp": ("image/webp", image("webp")),
    "lossless webp": ("image/webp", image("webp", lossless=True)),
    "extended webp": ("image/webp", image("webp", exif=b"Exif\x00\x00" + b"x" * 20)),
}
