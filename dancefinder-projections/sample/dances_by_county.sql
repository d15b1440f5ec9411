SELECT h.state AS county, COUNT(*)::text AS dances, COUNT(DISTINCT e.band_id)::text AS bands
FROM event e
JOIN dance_hall h ON h.id = e.dance_hall_id
WHERE e.date BETWEEN '2026-06-01' AND '2026-08-31'
GROUP BY h.state
ORDER BY COUNT(*) DESC, h.state
LIMIT 5;
