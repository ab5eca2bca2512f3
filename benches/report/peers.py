"""What a Python user would write: constant_memory of XlsxWriter, write_only of openpyxl.

usage: peers.py xlsxwriter|openpyxl FILE QUERY     with DATABASE_URL in the environment
"""

import json
import os
import sys

import psycopg

BATCH = 5000


def cells(row):
    """Values as both libraries take them: no zones, JSON as text."""
    for value in row:
        if isinstance(value, (dict, list)):
            yield json.dumps(value)
        elif getattr(value, "tzinfo", None) is not None:
            yield value.replace(tzinfo=None)
        else:
            yield value


def with_xlsxwriter(names, rows, path):
    import xlsxwriter

    workbook = xlsxwriter.Workbook(
        path, {"constant_memory": True, "default_date_format": "yyyy-mm-dd hh:mm:ss"}
    )
    sheet = workbook.add_worksheet()
    sheet.freeze_panes(1, 0)
    sheet.write_row(0, 0, names, workbook.add_format({"bold": True}))
    number = 0
    for number, row in enumerate(rows, 1):
        for column, value in enumerate(cells(row)):
            if value is not None:
                sheet.write(number, column, value)
    sheet.autofilter(0, 0, number, len(names) - 1)
    workbook.close()


def with_openpyxl(names, rows, path):
    from openpyxl import Workbook

    workbook = Workbook(write_only=True)
    sheet = workbook.create_sheet()
    sheet.freeze_panes = "A2"
    sheet.append(names)
    for row in rows:
        sheet.append(list(cells(row)))
    workbook.save(path)


def main():
    library, path, query = sys.argv[1:]
    write = {"xlsxwriter": with_xlsxwriter, "openpyxl": with_openpyxl}[library]
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        with connection.cursor("bench") as cursor:
            cursor.itersize = BATCH
            cursor.execute(query)
            write([column.name for column in cursor.description], cursor, path)


main()
