/** Which rows of a table cannot be seen now; what is seen for the first time is told of. */
export function outOfView(appear: () => void) {
  const hidden = new Set<number>();
  const places = new WeakMap<Element, number>();
  const observer = new IntersectionObserver((entries) => {
    let hasAppeared = false;
    for (const { target, isIntersecting } of entries) {
      const place = places.get(target)!;
      if (isIntersecting) hasAppeared = hidden.delete(place) || hasAppeared;
      else hidden.add(place);
    }
    if (hasAppeared) appear();
  });
  return {
    has: (place: number) => hidden.has(place),
    /** To be attached to the row in this place. */
    row: (place: number) => (element: Element) => {
      places.set(element, place);
      observer.observe(element);
      return () => {
        observer.unobserve(element);
        hidden.delete(place);
      };
    },
  };
}
