"use strict";
(function () {
  var modes = ["system", "light", "dark"];
  var button = document.getElementById("theme");
  function stored() {
    try { return localStorage.getItem("nl-theme"); } catch (error) { return null; }
  }
  function apply(mode) {
    if (mode === "system") { document.documentElement.removeAttribute("data-theme"); }
    else { document.documentElement.setAttribute("data-theme", mode); }
    button.textContent = "theme: " + mode;
    button.dataset.mode = mode;
  }
  button.addEventListener("click", function () {
    var next = modes[(modes.indexOf(button.dataset.mode) + 1) % modes.length];
    apply(next);
    try { localStorage.setItem("nl-theme", next); } catch (error) { return; }
  });
  apply(modes.indexOf(stored()) < 0 ? "system" : stored());

  function key(row, column) {
    var cell = row.cells[column];
    var value = cell.dataset.sort === undefined ? cell.textContent : cell.dataset.sort;
    var number = parseFloat(value);
    return value !== "" && !isNaN(number) && isFinite(value) ? number : value;
  }
  function compare(a, b) {
    if (a === "" || b === "") { return a === b ? 0 : a === "" ? 2 : -2; }
    if (typeof a === "number" && typeof b === "number") { return a - b; }
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }
  function sort(table, column, head) {
    var up = head.getAttribute("aria-sort") !== "ascending";
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows);
    rows.sort(function (first, second) {
      var order = compare(key(first, column), key(second, column));
      return Math.abs(order) === 2 ? order : up ? order : -order;
    });
    rows.forEach(function (row) { body.appendChild(row); });
    table.querySelectorAll("th[aria-sort]").forEach(function (other) {
      other.removeAttribute("aria-sort");
    });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, column) {
      head.firstElementChild.addEventListener("click", function () { sort(table, column, head); });
    });
  });
})();
