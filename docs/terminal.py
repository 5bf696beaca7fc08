"""Draws a terminal session as an SVG picture: what a command printed when it ran, line by line.

    python docs/terminal.py docs/session.svg 'COMMAND' ['COMMAND' ...]

Each command runs in a shell with stdout and stderr together, as a terminal shows them. Colours follow the reader's choice of
light or dark.
"""

import html
import subprocess
import sys
import textwrap

COLUMNS, LINE, CHAR, MARGIN = 120, 19, 8.1, 18
STYLE = """
  text { font: 13.5px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328; white-space: pre }
  .frame { fill: #f6f8fa; stroke: #d1d9e0 }
  .command { font-weight: 600 } .prompt { fill: #1a7f37 } .figures { fill: #59636e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .frame { fill: #151b23; stroke: #3d444d } .prompt { fill: #3fb950 } .figures { fill: #9198a1 }
  }
"""


def lines_of(command):
    for line in textwrap.wrap(command, COLUMNS - 4, break_long_words=False):
        yield ("command", line)
    output = subprocess.run(command, shell=True, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    for line in output.rstrip("\n").split("\n"):
        kind = "figures" if "tok/s" in line else "output"
        for part in textwrap.wrap(line, COLUMNS, drop_whitespace=False) or [""]:
            yield (kind, part)
    yield ("output", "")


def main():
    target, *commands = sys.argv[1:]
    lines = [line for command in commands for line in lines_of(command)][:-1]
    width, height = round(COLUMNS * CHAR + 2 * MARGIN), len(lines) * LINE + 2 * MARGIN
    label = html.escape("A terminal session: " + "; ".join(commands))
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    svg += [f"<style>{STYLE}</style>", f'<rect class="frame" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>']
    after_command = False
    for i, (kind, text) in enumerate(lines):
        y, x, mark = MARGIN + i * LINE + 14, MARGIN, ""
        if kind == "command":
            mark = "" if after_command else f'<text class="prompt" x="{x}" y="{y}">$</text>'
            x += 2 * CHAR
        after_command = kind == "command"
        svg.append(f'{mark}<text class="{kind}" x="{x:g}" y="{y}" xml:space="preserve">{html.escape(text)}</text>')
    with open(target, "w", encoding="utf-8") as file:
        file.write("\n".join([*svg, "</svg>", ""]))


if __name__ == "__main__":
    main()
