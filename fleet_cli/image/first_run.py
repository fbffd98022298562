"""`firstrun.sh`: what Raspberry Pi OS Bookworm runs instead of cloud-init, which it does not have.

The Imager puts it on the boot partition and has systemd run it once, without a network, before the
board starts again. So it names the board, lets its user in, lays the files, and no more.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Final

from fleet_cli.image.board_files import UNIT, BoardFile
from fleet_cli.image.card import Card

_END: Final = "END_OF_EDGEFLEET_FILE"
_IMAGER: Final = "/usr/lib/raspberrypi-sys-mods/imager_custom"
# The initramfs of Bookworm looks for this line, and puts the real paths in its place and below.
_LAST: Final = """\
rm -f /boot/firstrun.sh
sed -i 's| systemd.run.*||g' /boot/cmdline.txt
exit 0
"""


def first_run(card: Card, laid: Iterable[BoardFile], *, note: str) -> str:
    """Return the script."""
    keys = " ".join(shlex.quote(key) for key in card.ssh_keys)
    lines = [
        "#!/bin/sh",
        f"# {note}",
        "# Whatever fails here, the rest is worth doing.",
        "set +e",
        f"{_IMAGER} set_hostname {card.host}",
        f"{_IMAGER} enable_ssh -k {keys}",
        # Renames the image's first user; `!` locks the password.
        f"/usr/lib/userconf-pi/userconf {card.user} '!'",
    ]
    if card.wifi is not None:
        words = (card.wifi.ssid, card.wifi.psk, card.wifi.country)
        lines.append(f"{_IMAGER} set_wlan {' '.join(map(shlex.quote, words))}")
    for file in laid:
        lines += _laid(file)
    lines.append(f"systemctl enable {UNIT}")
    return "\n".join(lines) + "\n" + _LAST


def _laid(file: BoardFile) -> list[str]:
    path = shlex.quote(file.path)
    folder = shlex.quote(file.path.rpartition("/")[0])
    return [
        f"mkdir -p {folder}",
        # For root alone from its first byte.
        f"(umask 077; cat > {path}) <<'{_END}'",
        file.text.removesuffix("\n"),
        _END,
        f"chmod {file.mode:04o} {path}",
    ]
