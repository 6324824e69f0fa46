import numpy as np
from PIL import Image

from lspread.report import SheetPicture, draw_contact_sheet


def test_pictures_stand_in_their_places(tmp_path):
    colors = [(200, 30, 40), (30, 180, 60), (40, 60, 210)]
    paths = []
    for number, color in enumerate(colors):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (20, 20) if number else (300, 150), color).save(paths[-1])
    (tmp_path / "bad.png").write_bytes(b"no")
    rows = [
        [
            SheetPicture(paths[0], ("wide", "a very long line of text that cannot fit below a picture")),
            SheetPicture(paths[1], ()),
        ],
        [SheetPicture(paths[2], ("ä",)), SheetPicture(tmp_path / "bad.png", ("gone",)), SheetPicture(None, ())],
    ]
    path = draw_contact_sheet(rows, tmp_path / "new" / "sheet.png")
    sheet = np.asarray(Image.open(path))
    height = sheet.shape[0] // 2
    assert sheet.shape[1] == 3 * 136 + 8

    def center(row, column):
        return tuple(sheet[row * height + 8 + 64, 8 + column * 136 + 64])

    assert [center(0, 0), center(0, 1), center(1, 0)] == colors
    assert center(1, 1) == center(1, 2) == (255, 255, 255)
    # The wide picture keeps its shape: white above it, text below it, and no text beyond its column.
    assert tuple(sheet[8 + 10, 8 + 64]) == (255, 255, 255)
    text = sheet[8 + 128 : height, : 8 + 128]
    assert (text < 100).any()
    assert (sheet[8 + 128 : height, 8 + 129 : 8 + 136] == 255).all()


def test_scans_and_turned_photos_look_as_they_are(tmp_path):
    scan = np.zeros((64, 64), dtype=np.uint16) + 300
    scan[:, 32:] = 4095
    Image.fromarray(scan).save(tmp_path / "scan.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.new("RGB", (40, 20), (200, 30, 40)).save(tmp_path / "photo.jpg", exif=exif)
    rows = [[SheetPicture(tmp_path / "scan.png", ()), SheetPicture(tmp_path / "photo.jpg", ())]]
    sheet = np.asarray(Image.open(draw_contact_sheet(rows, tmp_path / "sheet.png")))
    assert tuple(sheet[72, 8 + 20]) == (0, 0, 0)
    assert tuple(sheet[72, 8 + 108]) == (255, 255, 255)
    upright = (sheet[8 : 8 + 128, 8 + 136 : 8 + 136 + 128] < 250).any(2)
    assert upright.any(1).sum() == 128
    assert upright.any(0).sum() == 64
