"""Compares workbooks of ours with the library's own, as openpyxl and LibreOffice read them.

usage: compare.py FOLDER    with NAME.ours.xlsx beside NAME.library.xlsx, for any number of names

Each pair is compared by openpyxl, and once more after LibreOffice has read and written both, as
workbooks (values, types, styles, panes, filters, widths, rules, charts) and as the text that it
shows in each sheet.
"""

import pathlib
import subprocess
import sys

import openpyxl

CSV = 'csv:Text - txt - csv (StarCalc):44,34,76,1,,0,false,true,false,false,false,-1'


def style(cell):
    font, fill, border, align = cell.font, cell.fill, cell.border, cell.alignment
    return {
        'number_format': cell.number_format,
        'font': (font.b, font.i, font.sz, font.color and font.color.rgb),
        'fill': (fill.fill_type, fill.fgColor.rgb),
        'border': (border.top.style, border.bottom.style),
        'align': (align.horizontal, align.wrap_text),
    }


def rules(sheet):
    found = []
    for place in sheet.conditional_formatting:
        for rule in place.rules:
            look = rule.dxf and (
                rule.dxf.font and (rule.dxf.font.i, rule.dxf.font.color and rule.dxf.font.color.rgb),
                rule.dxf.fill and rule.dxf.fill.bgColor.rgb,
            )
            scale = rule.colorScale and [color.rgb for color in rule.colorScale.color]
            bar = rule.dataBar and rule.dataBar.color.rgb
            found.append((str(place.sqref), rule.type, rule.operator, rule.formula, look, scale, bar))
    return found


def charts(sheet):
    found = []
    for chart in sheet._charts:
        series = []
        for each in chart.series:
            names = each.cat.numRef or each.cat.strRef
            series.append((each.tx.strRef.f, names.f, each.val.numRef.f))
        found.append((type(chart).__name__, chart.anchor._from.row, chart.anchor._from.col, series))
    return found


def seen(path):
    """What openpyxl sees of a workbook."""
    book = openpyxl.load_workbook(path)
    sheets = {}
    for sheet in book.worksheets:
        cells = {}
        for row in sheet.iter_rows():
            for cell in row:
                if cell.value is not None:
                    cells[cell.coordinate] = (cell.value, cell.data_type, style(cell))
        sheets[sheet.title] = {
            'cells': cells,
            'widths': {name: column.width for name, column in sheet.column_dimensions.items()},
            'panes': sheet.freeze_panes,
            'filter': sheet.auto_filter.ref,
            'rules': rules(sheet),
            'charts': charts(sheet),
        }
    return sheets


def compare(ours, library, what):
    """Stops at the first difference."""
    if list(ours) != list(library):
        sys.exit(f'{what}: sheets {list(ours)} and {list(library)}')
    for name, sheet in ours.items():
        for key, value in sheet.items():
            other = library[name][key]
            if key == 'cells':
                for place in sorted(value.keys() | other.keys()):
                    if value.get(place) != other.get(place):
                        sys.exit(f'{what}: {name}!{place}: {value.get(place)} and {other.get(place)}')
            elif value != other:
                sys.exit(f'{what}: {name}: {key} {value} and {other}')


def convert(folder, files, target, out):
    """Lets LibreOffice read files and write them as something else."""
    profile = (folder / 'profile').resolve().as_uri()
    command = ['soffice', f'-env:UserInstallation={profile}', '--headless', '--convert-to', target,
               '--outdir', str(out)] + [str(file) for file in files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    if done.returncode != 0:
        sys.exit(f'soffice: {done.stdout}{done.stderr}')


def main():
    folder = pathlib.Path(sys.argv[1])
    pairs = [(file, folder / file.name.replace('.ours.', '.library.'))
             for file in sorted(folder.glob('*.ours.xlsx'))]
    files = [file for pair in pairs for file in pair]
    convert(folder, files, CSV, folder / 'text')
    convert(folder, files, 'xlsx:Calc MS Excel 2007 XML', folder / 'again')
    count = 0
    for ours, library in pairs:
        compare(seen(ours), seen(library), f'openpyxl, {ours.name}')
        again = [seen(folder / 'again' / file.name) for file in (ours, library)]
        compare(*again, f'LibreOffice, {ours.name}')
        for name in again[0]:
            texts = [(folder / 'text' / f'{file.stem}-{name}.csv').read_bytes()
                     for file in (ours, library)]
            if texts[0] != texts[1] or not texts[0].strip():
                sys.exit(f'LibreOffice, {ours.name}, {name}: {texts[0]!r} and {texts[1]!r}')
        count += 2
    print(f'{count} comparisons')


main()
