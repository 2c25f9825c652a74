// Makes each heading of the table of runs a button that sorts it. Without it, the newest run is first.
const heads = [...document.querySelectorAll(".index thead th")];
heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const text = (row) => row.cells[column].textContent;
    const rows = [...document.querySelectorAll(".index tbody tr")];
    rows.sort((a, b) => text(a).localeCompare(text(b), "en", { numeric: true }) * (down ? -1 : 1));
    document.querySelector(".index tbody").append(...rows);
  });
  head.replaceChildren(button);
});
